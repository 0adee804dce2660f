// SPDX-License-Identifier: Apache-2.0
// What the Python side hands to the page. Times are in Unix seconds.
import type { DataTransformerConfig, FieldConfigSource, Labels } from '@grafana/data';

export interface Target {
  refId: string;
  expr: string;
  legendFormat?: string;
  format?: string;
}

export interface Panel {
  id: number;
  type: string;
  title: string;
  description?: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets: Target[];
  panels?: Panel[]; // of a row that is closed
  fieldConfig: FieldConfigSource<any>;
  options: any;
  transformations?: DataTransformerConfig[];
}

export interface Board {
  title: string;
  uid: string;
  panels: Panel[];
  templating: { list: Array<{ name: string; label?: string; type: string }> };
}

export interface Answer {
  type: 'matrix' | 'vector';
  series: Array<{ labels: Labels; points: Array<[number, string]> }>;
}

export interface Answers {
  start: number;
  end: number;
  step: number;
  panels: Record<string, Record<string, Answer>>; // by the panel's id and the query's refId
  marks: number[]; // when an alert began to fire
  chosen: Record<string, string>; // what the variables show
}

export interface Fault {
  panel: string;
  kind: string;
  detail: string;
}
