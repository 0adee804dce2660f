// SPDX-License-Identifier: Apache-2.0
// What the Python side calls in the page.
import type { DataFrame, QueryVariableModel } from '@grafana/data';
import { ThemeContext } from '@grafana/data';
import { GlobalStyles, PortalContainer } from '@grafana/ui';
import { interpolateQueryExpr } from 'prometheus-escaping';
import { createRoot } from 'react-dom/client';
import { MemoryRouter } from 'react-router-dom';
import { BoardView } from './board';
import { type Mode, shown, theme } from './data';
import { blind, panels, withData } from './faults';
import { measured } from './measured';
import type { Answers, Board, Fault } from './types';

async function draw(board: Board, answers: Answers, mode: Mode, width: number): Promise<Fault[]> {
  const frames = new Map<number, DataFrame[]>();
  for (const panel of panels(board)) {
    frames.set(panel.id, await shown(panel, answers, mode));
  }
  document.body.replaceChildren(Object.assign(document.createElement('div'), { id: 'root' }));
  document.body.style.margin = '0';
  const root = createRoot(document.getElementById('root')!);
  const render = (content: React.ReactNode) =>
    root.render(
      <MemoryRouter>
        <ThemeContext.Provider value={theme(mode)}>
          <GlobalStyles />
          {content}
          <PortalContainer />
        </ThemeContext.Provider>
      </MemoryRouter>,
    );
  // A canvas does not wait for a font as text does.
  render(<p>fonts</p>);
  await painted();
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  render(<BoardView {...{ board, answers, mode, width, frames }} />);
  await settled();
  return measured();
}

// What a query has in the place of a variable with several choices, or with an All that is a list of its options.
function interpolated(values: string[]): string {
  return String(interpolateQueryExpr(values, { multi: true, includeAll: true } as QueryVariableModel));
}

async function painted(): Promise<void> {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)));
}

// Some frames after the last change of the page.
async function settled(): Promise<void> {
  for (let quiet = 0, before = ''; quiet < 3; ) {
    await painted();
    const now = document.body.innerHTML;
    quiet = now === before && now.includes('id="board"') ? quiet + 1 : 0;
    before = now;
  }
}

Object.assign(window, { dashboards: { blind, draw, interpolated, withData } });
