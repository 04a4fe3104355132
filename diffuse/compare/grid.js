// The grid: columns, rows, and in each place the cells that lie there, told apart by what lies on neither axis.

function drawGrid(cells) {
  const grid = $('#grid');
  const { y } = state;
  // A single line that is wider than the window breaks into rows, in which each cell says where it belongs.
  const wraps = state.x >= 0 && y < 0 && places(state.x).length * (state.size + 10) > innerWidth - 60;
  const x = wraps ? -1 : state.x;
  if (wraps) cells = cells.toSorted((a, b) => data.cells[a].at[state.x] - data.cells[b].at[state.x]);
  nearby.disconnect();
  grid.style.setProperty('--size', `${state.size}px`);
  grid.classList.toggle('flow', x < 0);
  grid.classList.toggle('rowless', y < 0);
  const columns = x < 0 ? [-1] : places(x);
  const rows = y < 0 ? [-1] : places(y);
  const spots = new Map();
  for (const i of cells) {
    const key = `${x < 0 ? -1 : data.cells[i].at[x]},${y < 0 ? -1 : data.cells[i].at[y]}`;
    if (!spots.has(key)) spots.set(key, []);
    spots.get(key).push(i);
  }
  const free = freeAxes(cells, [x, y]);
  const longest = y < 0 ? 0 : Math.max(...rows.map((place) => title(y, place).length));
  grid.style.setProperty('--head', `${y < 0 ? 0 : Math.max(72, Math.min(innerWidth / 6, longest * 8 + 14, 220))}px`);
  grid.style.setProperty('--columns', columns.length);
  const nodes = [];
  if (x >= 0) {
    const heads = columns.map((place) => element('div', { className: 'column-head', title: title(x, place) }, ...heading(x, place)));
    nodes.push(element('div', { className: 'line heads' }, element('div', { className: 'corner' }), ...heads));
  }
  for (const row of rows) {
    const spotNodes = columns.map((column) => spot(spots.get(`${column},${row}`) || [], free));
    const head = y < 0 ? null : element('div', { className: 'row-head', title: title(y, row) }, ...heading(y, row));
    nodes.push(element('div', { className: 'line' }, head ?? element('div', { className: 'row-head' }), ...spotNodes));
  }
  grid.replaceChildren(...nodes);
}

const title = (axis, place) => `${data.axes[axis].label}: ${data.axes[axis].values[place]}`;

function heading(axis, place) {
  return [element('span', { className: 'field' }, `${data.axes[axis].label}: `), element('span', {}, data.axes[axis].values[place])];
}

// The axes other than `taken` in which the cells still differ.
function freeAxes(cells, taken) {
  return data.axes.map((_, a) => a)
    .filter((a) => !taken.includes(a) && new Set(cells.map((i) => data.cells[i].at[a])).size > 1);
}

function spot(cells, free) {
  const node = element('div', { className: cells.length ? 'spot' : 'spot empty' });
  for (const i of cells) node.append(shot(i, free));
  return node;
}

function shot(i, free) {
  const cell = data.cells[i];
  const button = element('button', { className: 'shot', title: caption(i), onclick: () => view(i) });
  button.dataset.cell = i;
  button.append(...(cell.video ? film(i) : [lazy(i)]));
  if (cell.reference === i) button.append(element('span', { className: 'badge', title: 'the others are measured against it' }, 'ref'));
  const lines = free.map((a) => `${data.axes[a].label}: ${value(i, a)}`);
  const below = state.below && (cell.reference === i && 'psnr ssim flip sound_snr'.includes(state.below) ? 'reference' : told(i, state.below));
  if (lines.length || below) {
    button.append(element('span', { className: 'below' },
      ...lines.map((line) => element('span', {}, line)), below ? element('span', { className: 'number' }, below) : null));
  }
  return button;
}

// A video at rest: one frame, which follows the mouse through the strip below it.
function film(i) {
  const { size, still: strip } = data.cells[i];
  if (!strip) return [element('span', { className: 'frame' }, data.cells[i].name)];
  const count = framesOf(i);
  const frame = element('span', { className: 'frame' }, lazy(i));
  frame.style.aspectRatio = `${size[0]} / ${size[1]}`;
  frame.style.setProperty('--frames', count);
  frame.onpointermove = (event) => {
    const box = frame.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * count);
    frame.style.setProperty('--frame', Math.max(0, Math.min(count - 1, place)));
  };
  frame.onpointerleave = () => frame.style.setProperty('--frame', 0);
  const all = lazy(i);
  all.classList.add('strip');
  return [frame, all];
}

// Films in the grid, all at once and in step: those on the screen. That under the mouse is heard.
let running = [];
const MOST_RUNNING = 32; // a browser decodes no more in time

function playGrid(on) {
  for (const film of running) film.remove();
  running = [];
  if (on) {
    const seen = [...document.querySelectorAll('#grid .shot')].filter((node) => {
      const box = node.getBoundingClientRect();
      return data.cells[+node.dataset.cell].moving && box.bottom > 0 && box.top < innerHeight;
    });
    running = seen.slice(0, MOST_RUNNING).map((node) => {
      const film = large(+node.dataset.cell);
      node.onpointerenter = () => { film.muted = false; };
      node.onpointerleave = () => { film.muted = true; };
      node.querySelector('.frame').append(film);
      return film;
    });
    startTogether(running);
  }
  $('#play').textContent = running.length ? 'Stop' : 'Play all';
}

function framesOf(i) {
  const { size, still: strip } = data.cells[i];
  return strip ? Math.max(1, Math.round((strip.size[0] / strip.size[1]) / (size[0] / size[1]))) : 1;
}

// The cell beside another on the screen: the nearest one in that direction.
function neighbour(from, key) {
  const at = from.getBoundingClientRect();
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = null;
  let least = Infinity;
  for (const node of document.querySelectorAll('#grid .shot')) {
    const to = node.getBoundingClientRect();
    const ahead = dx * (to.left - at.left) + dy * (to.top - at.top);
    const aside = Math.abs(dx ? to.top - at.top : to.left - at.left);
    if (node === from || ahead < 1) continue;
    const distance = ahead + 8 * aside;
    if (distance < least) [best, least] = [node, distance];
  }
  return best;
}

document.addEventListener('keydown', (event) => {
  const from = event.target.closest && event.target.closest('#grid .shot');
  if (!from || !event.key.startsWith('Arrow') || $('#viewer').open) return;
  const next = neighbour(from, event.key);
  if (!next) return;
  event.preventDefault();
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: 'nearest', inline: 'nearest' });
});
