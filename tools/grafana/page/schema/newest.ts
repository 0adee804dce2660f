// SPDX-License-Identifier: Apache-2.0
// Dashboards by the schema of the newest Grafana that is supported, and what it still reads of older ones.
import type * as common from '@grafana/schema';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type { Prometheus } from '../node_modules/@grafana/prometheus/dist/types/dataquery';
import type * as raw from '../node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type { BoardOf, Filled, Panels as PanelsOf, Without } from './written';
import type { Annotation, Generated, PanelLink } from './unlisted';

interface Newest {
  board: Without<raw.Dashboard, 'annotations' | 'templating'> & {
    annotations: { list: Array<raw.AnnotationQuery & Annotation> };
    templating: { list: Array<raw.VariableModel & Generated> };
  };
  panel: Without<raw.Panel, 'links'> & { links?: Array<PanelLink<raw.DashboardLink>> };
  row: Without<raw.RowPanel, 'panels'> & { panels: [] };
  field: raw.FieldConfig;
  query: Without<Prometheus, 'datasource' | 'scopes' | 'adhocFilters'> & { datasource: raw.DataSourceRef };
  // The panel's own defaults.
  stat: Filled<stat.Options, 'wideLayout' | 'showPercentChange' | 'percentChangeColorMode'>;
  // The footer of all columns, which is now that of each: Grafana moves it there.
  table: table.Options & { footer?: { show: boolean; reducer: string[]; countRows?: boolean } };
  tableField: common.TableFieldOptions;
  timeseries: timeseries.Options;
  timeseriesField: timeseries.FieldConfig;
  // Grafana makes a mode of `show`.
  heatmap: Without<heatmap.Options, 'tooltip'> & { tooltip: Partial<heatmap.HeatmapTooltip> & { show?: boolean } };
  heatmapField: heatmap.FieldConfig;
}

export type Panels = PanelsOf<Newest>;
export type Board = BoardOf<Newest>;
