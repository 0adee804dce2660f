// SPDX-License-Identifier: Apache-2.0
// What a JSON file may say where the schema has the type T: an enum's values are written as strings and numbers.
export type Written<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends number
      ? Plain<T>
      : T extends boolean | null | undefined
        ? T
        : T extends Array<infer Item>
          ? Array<Written<Item>>
          : { [Key in keyof T]: Written<T[Key]> };

// Not by `number extends T`, which holds for an enum of numbers, too.
type Plain<T extends number> = `${T}` extends `${infer Value extends number}` ? Value : never;

export type Without<T, Keys extends string> = { [Key in keyof T as Key extends Keys ? never : Key]: T[Key] };

// T, whose Keys may be missing: Grafana has a value for each.
export type Filled<T, Keys extends keyof T> = Without<T, Keys & string> & { [Key in Keys]?: T[Key] };

// An override of one property of a field, with the value that belongs to it.
type Property<Standard, Custom> =
  | { [Key in keyof Standard & string]-?: { id: Key; value?: Standard[Key] } }[keyof Standard & string]
  | { [Key in keyof Custom & string]-?: { id: `custom.${Key}`; value?: Custom[Key] } }[keyof Custom & string];

export interface Schema {
  board: unknown;
  panel: unknown;
  row: unknown;
  field: { custom?: unknown };
  query: unknown;
  stat: unknown;
  table: unknown;
  tableField: unknown;
  timeseries: unknown;
  timeseriesField: unknown;
  heatmap: unknown;
  heatmapField: unknown;
}

// The panels of a schema: the options, the fields and the queries of each type of panel have types of their own.
type PanelOf<Of extends Schema, Type extends string, Options, Custom> = Written<
  Without<Of['panel'], 'type' | 'options' | 'fieldConfig' | 'targets'> & {
    type: Type;
    options: Options;
    targets: Array<Of['query']>;
    fieldConfig: {
      defaults: Without<Of['field'], 'custom'> & { custom?: Partial<Custom> };
      overrides: Array<{
        matcher: { id: string; options?: unknown };
        properties: Array<Property<Without<Of['field'], 'custom'>, Custom>>;
      }>;
    };
  }
>;

export interface Panels<Of extends Schema> {
  row: Written<Of['row']>;
  stat: PanelOf<Of, 'stat', Of['stat'], {}>;
  table: PanelOf<Of, 'table', Of['table'], Of['tableField']>;
  timeseries: PanelOf<Of, 'timeseries', Of['timeseries'], Of['timeseriesField']>;
  heatmap: PanelOf<Of, 'heatmap', Of['heatmap'], Of['heatmapField']>;
}

export type BoardOf<Of extends Schema> = Written<Without<Of['board'], 'panels'>>;
