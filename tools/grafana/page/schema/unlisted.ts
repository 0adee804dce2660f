// SPDX-License-Identifier: Apache-2.0
// What Grafana reads and its schemas do not have, and what they demand and Grafana does not read.
import type { Filled } from './written';

// An annotation by Prometheus' data source.
export interface Annotation {
  expr: string;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
  useValueForTime?: boolean;
}

// The schema of Grafana 10 has few of the properties that its variables have; the newest has them.
export interface Variable {
  allValue?: string;
  includeAll?: boolean;
  regex?: string;
  sort?: number;
}

// The generator writes these of interval variables into all; Grafana reads them nowhere else.
export interface Generated {
  id?: string;
  auto?: boolean;
  auto_min?: string;
  auto_count?: number;
}

// A link of a panel has the type of a dashboard's, and these properties have no effect there.
export type PanelLink<Link extends { [Key in Idle]?: unknown }> = Filled<Link, Idle>;
type Idle = 'asDropdown' | 'icon' | 'includeVars' | 'keepTime' | 'tags' | 'tooltip';
