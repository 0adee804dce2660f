// SPDX-License-Identifier: Apache-2.0
// In place of @grafana/data, of which the types of a query have three that no dashboard here uses.
export type Scope = any;
export type ScopeSpec = any;
export type ScopeSpecFilter = any;
