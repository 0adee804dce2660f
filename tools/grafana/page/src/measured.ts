// SPDX-License-Identifier: Apache-2.0
// What the drawn page shows: panels whose content does not fit, and panels that are empty.
import type { Fault } from './types';

export function measured(): Fault[] {
  return [...document.querySelectorAll<HTMLElement>('[data-panel]')].filter((one) => one.dataset.type !== 'row').flatMap(of);
}

function of(box: HTMLElement): Fault[] {
  const panel = box.dataset.panel!;
  const found: Fault[] = [];
  const title = box.querySelector<HTMLElement>('h2');
  if (!title) {
    found.push({ panel, kind: 'not drawn', detail: 'there is no frame' });
  } else if (title.scrollWidth > title.clientWidth) {
    found.push({ panel, kind: 'title is cut', detail: `it needs ${title.scrollWidth} px and has ${title.clientWidth}` });
  }
  const grid = box.querySelector<HTMLElement>('[role=grid]');
  if (grid && grid.scrollWidth > grid.clientWidth) {
    found.push({ panel, kind: 'too wide', detail: `the table needs ${grid.scrollWidth} px and has ${grid.clientWidth}` });
  }
  if (box.dataset.zerosUpTo) {
    found.push({ panel, kind: 'axis of zeros', detail: `all values are 0, and the axis goes to ${box.dataset.zerosUpTo}` });
  }
  if (!box.querySelector('canvas, svg rect, [role=grid], [data-nothing]') && !box.innerText.replace(panel, '').trim()) {
    found.push({ panel, kind: 'not drawn', detail: 'there is nothing in the frame' });
  }
  return found;
}
