// SPDX-License-Identifier: Apache-2.0
// What is wrong with a dashboard, by what Grafana's code makes of it.
import {
  type DataFrame,
  type Field,
  type FieldDisplay,
  fieldMatchers,
  getFieldDisplayName,
  getFieldDisplayValues,
  getValueFormatterIndex,
  standardTransformersRegistry,
} from '@grafana/data';
import { isHealthy, isStuck } from './colours';
import { type Mode, ZONE, received, replaced, shown, theme, transformed, withDefaults } from './data';
import type { Answers, Board, Fault, Panel } from './types';

type Found = Omit<Fault, 'panel'>;
const MODE: Mode = 'dark';

export function panels(board: Board): Panel[] {
  return board.panels.flatMap((panel) => (panel.type === 'row' ? (panel.panels ?? []) : [panel])).map(withDefaults);
}

// Faults that show with data: the answers are of a time with trouble of every kind.
export async function withData(board: Board, answers: Answers, boards: Board[], runbooks: string[]): Promise<Fault[]> {
  return each(board, async (panel) => {
    const data = await transformed(panel, received(panel, answers));
    const last = await shown(panel, answers, MODE);
    return [
      ...units(panel),
      ...stuck(panel),
      ...(await transformations(panel, answers)),
      ...overrides(panel, data),
      ...sorting(panel, last),
      ...links(last, boards, runbooks),
      ...healthyCells(last),
    ];
  });
}

// Faults that show where there is nothing, or nothing any more: `answers` are of such a time.
export async function blind(board: Board, answers: Answers, state: string): Promise<Fault[]> {
  return each(board, async (panel) => {
    const frames = await shown(panel, answers, MODE);
    const healthy = panel.type === 'stat' && panel.options.colorMode !== 'none' ? stats(panel, frames, MODE).filter((one) => isHealthy(one.display.color, theme(MODE))) : [];
    return [
      ...healthy.map((one) => ({ kind: 'healthy without data', detail: `${state}: ${one.display.text}, in ${one.display.color}` })),
      ...healthyCells(frames),
    ];
  });
}

export function stats(panel: Panel, frames: DataFrame[], mode: Mode): FieldDisplay[] {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions ?? { calcs: ['lastNotNull'] },
    replaceVariables: replaced,
    theme: theme(mode),
    data: frames,
    sparkline: panel.options.graphMode !== 'none',
    timeZone: ZONE,
  });
}

async function each(board: Board, find: (panel: Panel) => Promise<Found[]>): Promise<Fault[]> {
  const found = await Promise.all(
    panels(board).map(async (panel) => {
      try {
        return (await find(panel)).map((fault) => ({ panel: panel.title, ...fault }));
      } catch (error) {
        return [{ panel: panel.title, kind: 'refused', detail: String(error) }];
      }
    }),
  );
  return found.flat();
}

function units(panel: Panel): Found[] {
  const used = [
    panel.fieldConfig.defaults.unit,
    ...panel.fieldConfig.overrides.flatMap((rule) => rule.properties.filter(({ id }) => id === 'unit').map(({ value }) => value)),
    panel.options?.yAxis?.unit,
    panel.options?.cellValues?.unit,
  ];
  const known = getValueFormatterIndex();
  return used
    .filter((unit) => unit && !(unit in known) && !/^(prefix|suffix|time|si|count|currency|bool):/.test(unit))
    .map((unit) => ({ kind: 'unknown unit', detail: unit }));
}

function stuck(panel: Panel): Found[] {
  const { defaults } = panel.fieldConfig;
  return panel.type === 'stat' && panel.options.colorMode !== 'none' && isStuck(defaults, theme(MODE))
    ? [{ kind: 'one colour', detail: 'a stat that looks like a judgement and never changes' }]
    : [];
}

async function transformations(panel: Panel, answers: Answers): Promise<Found[]> {
  const found: Found[] = [];
  const steps = panel.transformations ?? [];
  for (const [at, step] of steps.entries()) {
    if (!standardTransformersRegistry.getIfExists(step.id)) {
      found.push({ kind: 'unknown transformation', detail: step.id });
    }
    if (step.id === 'organize') {
      const before = await transformed({ ...panel, transformations: steps.slice(0, at) }, received(panel, answers));
      const names = new Set(before.flatMap((frame) => frame.fields.flatMap((field) => [field.name, getFieldDisplayName(field, frame, before)])));
      // The order may name a column that only some answers have.
      for (const part of ['excludeByName', 'includeByName', 'renameByName']) {
        found.push(
          ...Object.keys(step.options?.[part] ?? {})
            .filter((name) => !names.has(name))
            .map((name) => ({ kind: 'transforms nothing', detail: `${part} has ${name}, and the columns are ${[...names].join(', ')}` })),
        );
      }
    }
  }
  return found;
}

function overrides(panel: Panel, data: DataFrame[]): Found[] {
  return panel.fieldConfig.overrides.flatMap(({ matcher }): Found[] => {
    const known = fieldMatchers.getIfExists(matcher.id);
    if (!known) {
      return [{ kind: 'unknown matcher', detail: matcher.id }];
    }
    const matches = known.get(matcher.options);
    return data.some((frame) => frame.fields.some((field) => matches(field, frame, data)))
      ? []
      : [{ kind: 'overrides nothing', detail: `${matcher.id} ${JSON.stringify(matcher.options)}` }];
  });
}

function sorting(panel: Panel, frames: DataFrame[]): Found[] {
  const names = frames.flatMap((frame) => frame.fields.map((field) => getFieldDisplayName(field, frame, frames)));
  return (panel.type === 'table' ? (panel.options.sortBy ?? []) : [])
    .filter((one: any) => !names.includes(one.displayName))
    .map((one: any) => ({ kind: 'sorts by nothing', detail: one.displayName }));
}

// A link is followed from every cell that has it.
function links(frames: DataFrame[], boards: Board[], runbooks: string[]): Found[] {
  const urls = frames.flatMap((frame) =>
    frame.fields.flatMap((field) =>
      field.values.flatMap((_: unknown, valueRowIndex: number) => (field.getLinks?.({ valueRowIndex }) ?? []).map(({ href }) => href)),
    ),
  );
  return [...new Set(urls)].flatMap((url) => {
    const wrong = broken(url, boards, runbooks);
    return wrong ? [{ kind: 'broken link', detail: `${wrong}: ${url}` }] : [];
  });
}

function broken(url: string, boards: Board[], runbooks: string[]): string | undefined {
  const [path, query] = url.split('?');
  if (url.includes('${') || url.includes('undefined')) {
    return 'a variable has no value';
  }
  const runbook = /\/docs\/runbooks\/([^/#]+)\.md/.exec(path)?.[1];
  if (runbook && !runbooks.includes(runbook)) {
    return 'no such runbook';
  }
  const uid = /^\/d\/([^/]+)/.exec(path)?.[1];
  if (!uid) {
    return path.startsWith('https://') ? undefined : 'neither a dashboard nor an address';
  }
  const board = boards.find((one) => one.uid === uid);
  if (!board) {
    return 'no such dashboard';
  }
  const has = new Set(board.templating.list.map(({ name }) => name));
  const unknown = [...new URLSearchParams(query).keys()].filter((key) => key.startsWith('var-') && !has.has(key.slice(4)));
  return unknown.length ? `the dashboard has no ${unknown.join(', ')}` : undefined;
}

function healthyCells(frames: DataFrame[]): Found[] {
  const coloured = (field: Field) => String(field.config.custom?.cellOptions?.type ?? '').startsWith('color');
  return frames.flatMap((frame) =>
    frame.fields
      .filter((field) => coloured(field) && field.values.some((value) => isNothing(value) && isHealthy(field.display!(value).color, theme(MODE))))
      .map((field) => ({ kind: 'healthy without data', detail: `cells of ${getFieldDisplayName(field, frame, frames)} without a value` })),
  );
}

function isNothing(value: unknown): boolean {
  return value === null || value === undefined || Number.isNaN(value);
}
