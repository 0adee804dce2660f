// SPDX-License-Identifier: Apache-2.0
// In place of @grafana/runtime, of which the data source asks for other data sources when an exemplar links to one, and
// for features that are off unless a server says otherwise.
export const config = { featureToggles: {} };

export function getDataSourceSrv(): never {
  throw new Error('there is no other data source');
}
