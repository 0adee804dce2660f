// SPDX-License-Identifier: Apache-2.0
// A dashboard: panels in Grafana's frames, on its grid; on a phone below each other.
import { type DataFrame } from '@grafana/data';
import { Component, type PropsWithChildren } from 'react';
import { PanelChrome } from '@grafana/ui';
import { type Mode, theme, withDefaults } from './data';
import { Content } from './panels';
import type { Answers, Board, Panel } from './types';

const CELL = 30; // pixels of a row of the grid, between two of which lies a GAP, as between columns
const GAP = 8;
const EDGE = 16;
const PHONE = 769; // below this width Grafana puts the panels below each other
const HEAD = 56; // for the variables

interface Props {
  board: Board;
  answers: Answers;
  mode: Mode;
  width: number;
  frames: Map<number, DataFrame[]>;
}

interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

// Where each panel lies, in pixels.
function layout(board: Board, width: number): Box[] {
  const column = (width - 2 * EDGE - 23 * GAP) / 24;
  let below = HEAD;
  return board.panels.map(({ gridPos: { x, y, w, h } }) => {
    const height = h * (CELL + GAP) - GAP;
    if (width >= PHONE) {
      return { left: EDGE + x * (column + GAP), top: HEAD + y * (CELL + GAP), width: w * (column + GAP) - GAP, height };
    }
    const box = { left: EDGE, top: below, width: width - 2 * EDGE, height };
    below += height + GAP;
    return box;
  });
}

export function BoardView(props: Props) {
  const { board, answers, mode, width } = props;
  const boxes = layout(board, width);
  const bottom = Math.max(...boxes.map((box) => box.top + box.height)) + EDGE;
  const { colors, typography } = theme(mode);
  const text = { color: colors.text.primary, fontFamily: typography.fontFamily, fontSize: 14 };
  return (
    <div id="board" style={{ ...text, position: 'relative', width, height: bottom, background: colors.background.canvas, overflow: 'hidden' }}>
      <div style={{ position: 'absolute', left: EDGE, top: EDGE, whiteSpace: 'nowrap' }}>
        <b>{board.title}</b>
        {Object.entries(answers.chosen).map(([name, value]) => (
          <span key={name} style={{ marginLeft: 20 }}>
            <span style={{ color: colors.text.secondary }}>{name}</span> {value}
          </span>
        ))}
      </div>
      {board.panels.map((panel, at) => (
        <div key={panel.id} data-panel={panel.title} data-type={panel.type} style={{ position: 'absolute', ...boxes[at] }}>
          {panel.type === 'row' ? <b style={{ lineHeight: `${CELL}px` }}>⌄ {panel.title}</b> : <Framed {...props} panel={withDefaults(panel)} box={boxes[at]} />}
        </div>
      ))}
    </div>
  );
}

function Framed({ panel, box, answers, mode, frames }: Props & { panel: Panel; box: Box }) {
  return (
    <PanelChrome title={panel.title} description={panel.description} width={box.width} height={box.height} padding={panel.type === 'table' ? 'none' : 'md'}>
      {(width, height) => (
        <Boundary>
          <Content {...{ panel, frames: frames.get(panel.id) ?? [], answers, mode, width, height }} />
        </Boundary>
      )}
    </PanelChrome>
  );
}

// A panel that cannot be drawn is left empty, which is found, and does not take the others with it.
class Boundary extends Component<PropsWithChildren, { failed: boolean }> {
  override state = { failed: false };

  static getDerivedStateFromError() {
    return { failed: true };
  }

  override render() {
    return this.state.failed ? null : this.props.children;
  }
}
