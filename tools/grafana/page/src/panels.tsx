// SPDX-License-Identifier: Apache-2.0
// The content of a panel, as the panel of Grafana that has its type puts it together from the same components.
import { type DataFrame, type FieldDisplay, type TimeRange, VizOrientation, applyNullInsertThreshold, getDisplayValueAlignmentFactors, getFieldDisplayName } from '@grafana/data';
import { BigValue, BigValueColorMode, BigValueGraphMode, BigValueJustifyMode, BigValueTextMode, TimeSeries, type UPlotConfigBuilder, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { useMemo } from 'react';
import { type Mode, ZONE, range, theme } from './data';
import { stats } from './faults';
import { Heatmap } from './heatmap';
import type { Answers, Panel } from './types';

export interface Shown {
  panel: Panel;
  frames: DataFrame[];
  answers: Answers;
  mode: Mode;
  width: number;
  height: number;
}

const KINDS: Record<string, (shown: Shown) => React.ReactNode> = { stat: Stat, timeseries: Graph, table: Table, heatmap: Heatmap };

export function Content(of: Shown): React.ReactNode {
  const Kind = KINDS[of.panel.type];
  if (!Kind) {
    throw new Error(`no panel of the type ${of.panel.type} is known here`);
  }
  const isEmpty = of.frames.every((frame) => frame.length === 0);
  return isEmpty && of.panel.type !== 'stat' ? <Nothing {...of} /> : <Kind {...of} />;
}

function Nothing({ panel, width, height }: Shown) {
  return (
    <div data-nothing style={{ width, height, display: 'grid', placeItems: 'center', textAlign: 'center' }}>
      {panel.fieldConfig.defaults.noValue ?? 'No data'}
    </div>
  );
}

function Stat({ panel, frames, mode, width, height }: Shown) {
  const { options } = panel;
  const values = stats(panel, frames, mode);
  return (
    <VizRepeater
      getValues={() => values}
      getAlignmentFactors={(found: FieldDisplay[]) => getDisplayValueAlignmentFactors(found)}
      renderValue={({ value, width, height, count }: any) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline}
          colorMode={options.colorMode ?? BigValueColorMode.Value}
          graphMode={options.graphMode ?? BigValueGraphMode.Area}
          justifyMode={options.justifyMode ?? BigValueJustifyMode.Auto}
          textMode={options.textMode ?? BigValueTextMode.Auto}
          text={options.text}
          width={width}
          height={height}
          theme={theme(mode)}
        />
      )}
      source={frames}
      itemSpacing={3}
      renderCounter={0}
      width={width}
      height={height}
      orientation={options.orientation || VizOrientation.Auto}
      autoGrid
    />
  );
}

function Graph({ panel, frames, answers, mode, width, height }: Shown) {
  // As Grafana's panel does, which makes a gap where a series has no points. This component does so in the first frame alone.
  const withGaps = useMemo(() => {
    const [refFieldPseudoMin, refFieldPseudoMax] = [answers.start * 1000, answers.end * 1000];
    return frames.map((frame) => applyNullInsertThreshold({ frame, refFieldPseudoMin, refFieldPseudoMax }));
  }, [frames, answers]);
  return (
    <TimeSeries frames={withGaps} timeRange={range(answers)} timeZone={ZONE} legend={panel.options.legend} options={panel.options} width={width} height={height}>
      {(builder: UPlotConfigBuilder) => {
        builder.addHook('draw', (plot) => {
          mark(plot, answers.marks, theme(mode).visualization.getColorByName('red'));
          noteAxis(plot, panel.fieldConfig.defaults.custom?.axisSoftMax ?? 0);
        });
        return null;
      }}
    </TimeSeries>
  );
}

// An annotation is a dashed line; the code that draws it is of the application.
function mark({ ctx, bbox, valToPos }: any, marks: number[], colour: string): void {
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.setLineDash([4, 4]);
  for (const when of marks) {
    const x = valToPos(when * 1000, 'x', true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

// For measured.ts: how far the axis of a graph of zeros goes, if that is beyond the end that the panel gives it.
function noteAxis({ root, scales, data }: any, end: number): void {
  const values = data.slice(1).flatMap((series: Array<number | null>) => series.filter((value) => value !== null && value !== undefined));
  const top = Math.max(...Object.entries<any>(scales).map(([name, scale]) => (name === 'x' ? 0 : (scale.max ?? 0))));
  const isFar = values.length > 0 && values.every((value: number) => value === 0) && top > end;
  const box = root.closest('[data-panel]');
  if (box) {
    box.dataset.zerosUpTo = isFar ? String(top) : '';
  }
}

function Table({ panel, frames, answers, width, height }: Shown) {
  const { options, fieldConfig } = panel;
  const [data] = frames;
  for (const field of data.fields) {
    field.state = { ...field.state, displayName: getFieldDisplayName(field, data, frames) };
  }
  return (
    <TableNG
      data={data}
      width={width}
      height={height}
      noHeader={options.showHeader === false}
      cellHeight={options.cellHeight}
      sortBy={options.sortBy}
      noValue={fieldConfig.defaults.noValue}
      fieldConfig={fieldConfig}
      timeRange={range(answers) as TimeRange}
      enableVirtualization={false}
      structureRev={1}
    />
  );
}
