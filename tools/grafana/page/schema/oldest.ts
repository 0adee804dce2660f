// SPDX-License-Identifier: Apache-2.0
// Dashboards by the schema of the oldest Grafana that is supported, and what that schema leaves out.
import type * as common from '@grafana/schema-oldest';
import type * as heatmap from '@grafana/schema-oldest/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as prometheus from '@grafana/schema-oldest/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen';
import type * as stat from '@grafana/schema-oldest/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema-oldest/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema-oldest/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as raw from '@grafana/schema-oldest/dist/esm/raw/dashboard/x/dashboard_types.gen';
import type { BoardOf, Filled, Panels as PanelsOf, Without } from './written';
import type { Annotation, Generated, PanelLink, Variable } from './unlisted';

interface Oldest {
  board: Filled<Without<raw.Dashboard, 'annotations' | 'templating'>, 'style'> & {
    annotations: { list: Array<raw.AnnotationQuery & Annotation> };
    templating: { list: Array<raw.VariableModel & Variable & Generated> };
  };
  panel: Without<raw.Panel, 'links'> & { links?: Array<PanelLink<raw.DashboardLink>> };
  row: Without<raw.RowPanel, 'panels'> & { panels: [] };
  field: raw.FieldConfig;
  query: Without<prometheus.PrometheusDataQuery, 'datasource'> & { datasource: raw.DataSourceRef };
  stat: stat.Options;
  table: table.Options;
  tableField: common.TableFieldOptions;
  timeseries: timeseries.Options;
  timeseriesField: timeseries.FieldConfig;
  heatmap: heatmap.Options;
  heatmapField: heatmap.FieldConfig;
}

export type Panels = PanelsOf<Oldest>;
export type Board = BoardOf<Oldest>;
