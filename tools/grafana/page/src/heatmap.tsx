// SPDX-License-Identifier: Apache-2.0
// A heatmap, drawn here, because no package carries Grafana's; the picture says so. The rows are of Grafana's code.
import { getValueFormat, formattedValueToString } from '@grafana/data';
import { interpolateOranges } from 'd3-scale-chromatic';
import { theme } from './data';
import type { Shown } from './panels';

const AXIS = 60; // pixels left of the cells, for the buckets
const BELOW = 34; // pixels under them, for the time and the note

export function Heatmap({ panel, frames, answers, mode, width, height }: Shown) {
  const [frame] = frames;
  const [time, ...rows] = frame.fields;
  const most = Math.max(1e-9, ...rows.flatMap((row) => row.values.filter(Number.isFinite)));
  const [across, down] = [(width - AXIS) / (answers.end - answers.start), (height - BELOW) / rows.length];
  const colour = theme(mode).colors.text.secondary;
  const label = getValueFormat(panel.options.yAxis?.unit);
  return (
    <svg width={width} height={height} fontSize={11} fill={colour}>
      {rows.map((row, at) => (
        <g key={row.name} transform={`translate(${AXIS} ${(rows.length - 1 - at) * down})`}>
          {at % 2 === 0 && (
            <text x={-6} y={down / 2 + 4} textAnchor="end">
              {row.name === '+Inf' ? row.name : formattedValueToString(label(Number(row.name)))}
            </text>
          )}
          {row.values.map((value, when) =>
            value > (panel.options.filterValues?.le ?? 0) ? (
              <rect
                key={when}
                x={(time.values[when] / 1000 - answers.start) * across}
                width={Math.max(1, answers.step * across - 1)}
                height={Math.max(1, down - 1)}
                fill={interpolateOranges(mode === 'dark' ? 1 - 0.85 * Math.sqrt(value / most) : 0.15 + 0.85 * Math.sqrt(value / most))}
              />
            ) : null,
          )}
        </g>
      ))}
      {[0, 1, 2, 3].map((part) => (
        <text key={part} x={AXIS + ((width - AXIS) * part) / 4} y={height - BELOW + 14}>
          {new Date(1000 * (answers.start + ((answers.end - answers.start) * part) / 4)).toISOString().slice(11, 19)}
        </text>
      ))}
      <text x={AXIS} y={height - 4} fontStyle="italic">
        Drawn by this project: no package carries Grafana’s heatmap.
      </text>
    </svg>
  );
}
