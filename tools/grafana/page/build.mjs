// SPDX-License-Identifier: Apache-2.0
// Puts the page together: page.js and page.css.
import { build } from 'esbuild';

await build({
  entryPoints: { page: 'src/main.tsx' },
  outdir: 'out',
  bundle: true,
  format: 'iife',
  jsx: 'automatic',
  minify: true,
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  alias: {
    // Of the data source, only the parts that make frames of answers, and that put variables into queries.
    '@grafana/prometheus': './node_modules/@grafana/prometheus/dist/esm/result_transformer.mjs',
    'prometheus-escaping': './node_modules/@grafana/prometheus/dist/esm/escaping.mjs',
    '@grafana/runtime': './src/runtime.ts',
  },
  loader: { '.woff2': 'dataurl', '.woff': 'empty', '.ttf': 'empty', '.svg': 'dataurl', '.png': 'dataurl' },
  logLevel: 'error',
});
