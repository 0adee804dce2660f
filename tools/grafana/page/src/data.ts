// SPDX-License-Identifier: Apache-2.0
// A panel's answers, through the code of Grafana that transforms them and applies units, thresholds, overrides and links.
import { lastValueFrom } from 'rxjs';
import {
  type DataFrame,
  type DataTransformerConfig,
  type FieldConfigPropertyItem,
  FieldColorModeId,
  FieldConfigOptionsRegistry,
  type FieldConfigSource,
  type GrafanaTheme2,
  type ScopedVars,
  type ThresholdsConfig,
  ThresholdsMode,
  type TimeRange,
  applyFieldOverrides,
  createTheme,
  dataLinksOverrideProcessor,
  dateTime,
  displayNameOverrideProcessor,
  getFieldDisplayValuesProxy,
  identityOverrideProcessor,
  standardTransformers,
  standardTransformersRegistry,
  thresholdsOverrideProcessor,
  transformDataFrame,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';
import { transformV2 } from '@grafana/prometheus';
import { frames } from './frames';
import type { Answers, Panel } from './types';

export const ZONE = 'utc';
const THEMES = { dark: createTheme({ colors: { mode: 'dark' } }), light: createTheme({ colors: { mode: 'light' } }) };
export type Mode = keyof typeof THEMES;

// Two of them have the same identifier, the old name of one and the new.
const TRANSFORMERS = Object.fromEntries(Object.values(standardTransformers).map((one) => [one.id, one]));
standardTransformersRegistry.setInit(() =>
  Object.values(TRANSFORMERS).map((one) => ({
    id: one.id,
    name: one.name,
    transformation: async () => one,
    editor: () => null,
    imageDark: '',
    imageLight: '',
  })),
);

// How a property of an override is brought into the form that the field's configuration has.
const PROCESSORS: Record<string, FieldConfigPropertyItem['process']> = {
  unit: unitOverrideProcessor,
  displayName: displayNameOverrideProcessor,
  links: dataLinksOverrideProcessor,
  thresholds: thresholdsOverrideProcessor,
  mappings: valueMappingsOverrideProcessor,
};
const STANDARD = ['color', 'decimals', 'description', 'displayName', 'fieldMinMax', 'filterable', 'links', 'mappings', 'max', 'min', 'noValue', 'thresholds', 'unit'];

export function theme(mode: Mode): GrafanaTheme2 {
  return THEMES[mode];
}

// The properties that a panel has. Those of the panel's type are known to its types alone, and what is not listed is dropped.
function registry(panel: Panel): FieldConfigOptionsRegistry {
  const { defaults, overrides } = panel.fieldConfig;
  const overridden = overrides.flatMap((rule) => rule.properties.map(({ id }) => id)).filter((id) => id.startsWith('custom.'));
  const custom = [...Object.keys(defaults.custom ?? {}).map((key) => `custom.${key}`), ...overridden];
  const item = (id: string): FieldConfigPropertyItem =>
    ({
      id,
      path: id.replace(/^custom\./, ''),
      name: id,
      isCustom: id.startsWith('custom.'),
      process: PROCESSORS[id] ?? identityOverrideProcessor,
      shouldApply: () => true,
    }) as any;
  return new FieldConfigOptionsRegistry(() => [...new Set([...STANDARD, ...custom])].map(item));
}

export function range(answers: Answers): TimeRange {
  const [from, to] = [dateTime(answers.start * 1000), dateTime(answers.end * 1000)];
  return { from, to, raw: { from, to } };
}

// What Prometheus' data source hands to the panel: one frame for a table, one for each series of a graph.
export function received(panel: Panel, answers: Answers): DataFrame[] {
  const data = frames(panel, answers.panels[panel.id] ?? {}, answers.step);
  return transformV2({ data }, { targets: panel.targets } as any, {}).data;
}

export async function transformed(panel: Panel, data: DataFrame[]): Promise<DataFrame[]> {
  const steps: DataTransformerConfig[] = panel.transformations ?? [];
  return lastValueFrom(transformDataFrame(steps, data, { interpolate: (text: string) => text }));
}

// What Grafana's panels set where a dashboard sets nothing.
const THRESHOLDS = { mode: ThresholdsMode.Absolute, steps: [{ value: -Infinity, color: 'green' }, { value: 80, color: 'red' }] };
const DEFAULTS: Record<string, FieldConfigSource['defaults']> = {
  stat: { color: { mode: FieldColorModeId.Thresholds } },
  table: { color: { mode: FieldColorModeId.Thresholds }, custom: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false } },
  timeseries: { color: { mode: FieldColorModeId.PaletteClassic } },
};

export function withDefaults(panel: Panel): Panel {
  const { defaults, overrides } = panel.fieldConfig;
  const own = DEFAULTS[panel.type] ?? {};
  return {
    ...panel,
    fieldConfig: {
      overrides,
      defaults: {
        ...own,
        ...defaults,
        thresholds: active(defaults.thresholds ?? THRESHOLDS),
        custom: { ...own.custom, ...defaults.custom },
      },
    },
  };
}

// JSON has no infinity: a threshold without a value is the lowest.
function active({ mode, steps }: ThresholdsConfig): ThresholdsConfig {
  return { mode, steps: steps.map(({ value, color }) => ({ value: value ?? -Infinity, color })) };
}

export function configured(panel: Panel, data: DataFrame[], mode: Mode, links: (url: string, vars?: ScopedVars) => string): DataFrame[] {
  return applyFieldOverrides({
    data,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry(panel),
    replaceVariables: links,
    theme: theme(mode),
    timeZone: ZONE,
  });
}

export async function shown(panel: Panel, answers: Answers, mode: Mode): Promise<DataFrame[]> {
  return configured(panel, await transformed(panel, received(panel, answers)), mode, replaced);
}

// Grafana's own variables in links. The macros are of the application, which no package carries; the values are not.
export function replaced(text: string, vars: ScopedVars = {}): string {
  const context = vars.__dataContext?.value;
  return text.replace(/\$\{([^}]+)\}/g, (whole, name: string) => {
    if (name === '__url_time_range') {
      return 'from=now-1h&to=now';
    }
    if (name.endsWith(':queryparam')) {
      return `var-${name.split(':')[0]}=All`;
    }
    const row = context && getFieldDisplayValuesProxy({ frame: context.frame, rowIndex: context.rowIndex ?? 0 });
    if (row && name.startsWith('__data.fields.')) {
      const value = row[name.slice('__data.fields.'.length)];
      return value === undefined ? whole : encodeURIComponent(String(value));
    }
    if (row && (name === '__value.raw' || name === '__value.text')) {
      return encodeURIComponent(String(context.field.values[context.rowIndex ?? 0]));
    }
    return whole;
  });
}
