// SPDX-License-Identifier: Apache-2.0
// Answers of Prometheus as the data frames that Grafana's server makes of them.
import { type DataFrame, DataFrameType, FieldType, type Labels, createDataFrame } from '@grafana/data';
import type { Answer, Panel, Target } from './types';

export function frames(panel: Panel, answers: Record<string, Answer>, step: number): DataFrame[] {
  return panel.targets.flatMap((target) =>
    (answers[target.refId]?.series ?? []).map(({ labels, points }) => frame(target, labels, points, answers[target.refId], step)),
  );
}

function frame(target: Target, labels: Labels, points: Array<[number, string]>, answer: Answer, step: number): DataFrame {
  const name = legend(target, labels);
  return createDataFrame({
    refId: target.refId,
    name,
    meta: { type: DataFrameType.TimeSeriesMulti, custom: { resultType: answer.type } },
    fields: [
      // Grafana shows a gap where two points are further apart than the interval.
      { name: 'Time', type: FieldType.time, config: { interval: step * 1000 }, values: points.map(([when]) => when * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        labels,
        config: { displayNameFromDS: name },
        values: points.map(([, value]) => number(value)),
      },
    ],
  });
}

function number(value: string): number {
  return value === '+Inf' ? Infinity : value === '-Inf' ? -Infinity : Number(value);
}

function legend(target: Target, labels: Labels): string {
  if (target.legendFormat) {
    return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
  }
  const all = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  return all.length ? `{${all.join(', ')}}` : target.expr;
}
