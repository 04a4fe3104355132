// The page as a whole: what is chosen, and the parts that follow it. `data` is what the page was written with.

let data;
const state = { x: -1, y: -1, view: 'grid', below: '', size: 0, out: [], sort: null };
const BELOW = {
  '': 'Nothing', seconds: 'Seconds', psnr: 'PSNR', ssim: 'SSIM', flip: 'FLIP', sound_snr: 'Sound SNR', name: 'File name',
};
const KEYS = [
  ['Enter', 'enlarge what is selected'], ['← → ↑ ↓', 'the next one, in the grid and enlarged'],
  ['1', 'one picture'], ['W', 'wipe between two'], ['S', 'side by side'], ['D', 'difference'],
  ['A', 'the next one to compare with'], ['P', 'pin: compare the following with this one'], ['+ −', 'nearer, farther'],
  ['Space', 'play or pause'], ['M', 'sound: of one, of the other, of none'], ['C', 'copy the command'], ['Esc', 'back'],
];

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const $ = (selector) => document.querySelector(selector);
const value = (i, axis) => data.axes[axis].values[data.cells[i].at[axis]];
const isShown = (i) => data.cells[i].at.every((place, axis) => !state.out[axis].has(place));
const shownCells = () => data.cells.map((_, i) => i).filter(isShown);
const places = (axis) => data.axes[axis].values.map((_, place) => place).filter((place) => !state.out[axis].has(place));

// A cell in words: by what varies, without the axes that are told elsewhere.
function caption(i, without = []) {
  const told = data.axes.map((axis, a) => (without.includes(a) ? null : `${axis.label}: ${value(i, a)}`));
  return told.filter(Boolean).join(' · ') || data.cells[i].name;
}

const decibels = (v) => (v === 'inf' ? '∞ dB' : `${v.toFixed(2)} dB`);
const FORMATS = {
  seconds: (v) => `${v < 10 ? v.toFixed(2) : v.toFixed(1)} s`, psnr: decibels, sound_snr: decibels,
  ssim: (v) => v.toFixed(4), flip: (v) => v.toFixed(4), weights_error: (v) => v.toPrecision(2), name: (v) => v,
};

function told(i, field) {
  const v = data.cells[i][field];
  return v === null || v === undefined ? '' : FORMATS[field](v);
}

function start() {
  data = JSON.parse($('#data').textContent);
  Object.assign(state, { x: data.x, y: data.y, out: data.axes.map(() => new Set()) });
  const measured = data.cells.some((cell) => cell.ssim !== null || cell.psnr !== null);
  state.below = measured ? 'psnr' : data.cells.some((cell) => cell.seconds) ? 'seconds' : '';
  $('h1').textContent = data.title;
  fillHead();
  fillBar();
  startViewer();
  $('#theme').onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.trim() === 'dark';
    document.documentElement.dataset.theme = dark ? 'light' : 'dark';
    show();
  };
  $('#help').onclick = () => $('#keys').showModal();
  $('#keys button').onclick = () => $('#keys').close();
  $('#keys dl').append(...KEYS.flatMap(([key, what]) => [element('dt', {}, element('kbd', {}, key)), element('dd', {}, what)]));
  for (const tab of document.querySelectorAll('[data-view]')) tab.onclick = () => { state.view = tab.dataset.view; show(); };
  document.addEventListener('keydown', (event) => {
    if (event.key === '?' && !event.target.matches('input, select, textarea')) $('#keys').showModal();
  });
  state.size = fittingSize();
  $('#size').value = state.size;
  let waiting = 0;
  addEventListener('resize', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => state.view === 'plots' && show(), 150);
  });
  show();
}

function fillHead() {
  const kind = data.cells[0].video ? 'video' : 'picture';
  const counts = data.axes.map((axis) => `${axis.label} × ${axis.values.length}`);
  const number = `${data.cells.length} ${kind}${data.cells.length === 1 ? '' : 's'}`;
  $('.summary').textContent = [number, ...counts].join(' · ');
  $('.summary').title = `made ${data.made} by diffuse ${data.version}`;
  $('.common dl').append(...data.common.flatMap(([key, what]) => [element('dt', {}, key), element('dd', {}, what)]));
  $('.common').hidden = !data.common.length;
  const failed = data.failures.length;
  $('.failures').hidden = !failed;
  $('.failures summary').textContent = failed === 1 ? '1 job failed' : `${failed} jobs failed`;
  $('.failures ul').append(...data.failures.map((f) => element('li', {}, element('code', {}, f.overrides), ` ${f.error}`)));
}

function fillBar() {
  for (const [id, other] of [['x', 'y'], ['y', 'x']]) {
    const options = [['-1', id === 'x' ? 'run on' : 'none'], ...data.axes.map((axis, a) => [a, axis.label])];
    $(`#${id}`).append(...options.map(([key, label]) => element('option', { value: key }, label)));
    $(`#${id}`).onchange = (event) => {
      const before = state[id];
      state[id] = +event.target.value;
      if (state[id] === state[other]) state[other] = before; // they change places
      fit();
    };
  }
  $('#swap').onclick = () => { [state.x, state.y] = [state.y, state.x]; fit(); };
  $('#play').onclick = () => playGrid(!running.length);
  const there = Object.keys(BELOW).filter((key) => !key || data.cells.some((cell) => cell[key] !== null));
  $('#below').append(...there.map((key) => element('option', { value: key, selected: key === state.below }, BELOW[key])));
  $('#below').onchange = (event) => { state.below = event.target.value; show(); };
  $('#size').oninput = (event) => {
    state.size = +event.target.value;
    $('#grid').style.setProperty('--size', `${state.size}px`);
  };
  $('#all').onclick = () => { state.out.forEach((set) => set.clear()); show(); };
  $('.filters').append(...data.axes.map((_, a) => filter(a)));
  document.addEventListener('click', (event) => {
    for (const open of document.querySelectorAll('.filter[open]')) if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener('keydown', (event) => {
    const open = event.key === 'Escape' && $('.filter[open]');
    if (open) { open.open = false; open.querySelector('summary').focus(); }
  });
}

// The values of one axis, each of which can be left out.
function filter(a) {
  const axis = data.axes[a];
  const node = element('details', { className: 'filter' }, element('summary'));
  const list = element('div', { className: 'values' });
  const search = element('input', { type: 'search', placeholder: 'Find', hidden: axis.values.length < 12 });
  search.ariaLabel = `Find a value of ${axis.label}`;
  search.oninput = () => {
    for (const label of list.children) label.hidden = !label.textContent.toLowerCase().includes(search.value.toLowerCase());
  };
  const set = (chosen) => {
    state.out[a] = new Set(axis.values.map((_, place) => place).filter((place) => !chosen(place)));
    show();
  };
  const visible = (place) => !list.children[place].hidden;
  const buttons = element('div', { className: 'row' },
    element('button', { className: 'plain', onclick: () => set((place) => visible(place) || !state.out[a].has(place)) }, 'All'),
    element('button', { className: 'plain', onclick: () => set((place) => !visible(place) && !state.out[a].has(place)) }, 'None'));
  axis.values.forEach((text, place) => {
    const box = element('input', { type: 'checkbox', checked: true });
    box.onchange = () => { state.out[a][box.checked ? 'delete' : 'add'](place); show(); };
    const only = element('button', { className: 'plain only', onclick: (e) => { e.preventDefault(); set((p) => p === place); } }, 'only');
    list.append(element('label', { title: text }, box, element('span', {}, text), only));
  });
  node.append(element('div', { className: 'pop' }, search, buttons, list));
  node.update = () => {
    const kept = axis.values.length - state.out[a].size;
    const one = kept === 1 ? axis.values[places(a)[0]] : `${kept} of ${axis.values.length}`;
    node.firstChild.textContent = state.out[a].size ? `${axis.label}: ${one}` : axis.label;
    node.classList.toggle('active', state.out[a].size > 0);
    [...list.children].forEach((label, place) => { label.firstChild.checked = !state.out[a].has(place); });
  };
  return node;
}

function fit() {
  state.size = fittingSize();
  $('#size').value = state.size;
  show();
}

// As large as lets all columns be seen, within reason.
function fittingSize() {
  const columns = state.x < 0 ? 6 : Math.min(data.axes[state.x].values.length, state.y < 0 ? 8 : Infinity);
  const native = Math.max(...data.cells.slice(0, 50).map((cell) => Math.max(...cell.size)));
  const room = (innerWidth - (state.y < 0 ? 60 : 240)) / columns - 14;
  return Math.round(Math.max(96, Math.min(room, 384, Math.max(native * 2, 160))) / 8) * 8;
}

function show() {
  playGrid(false);
  $('.tip').hidden = true;
  $('#x').value = state.x;
  $('#y').value = state.y;
  for (const tab of document.querySelectorAll('[data-view]')) tab.ariaSelected = String(tab.dataset.view === state.view);
  for (const name of ['grid', 'table', 'plots']) $(`#${name}`).hidden = name !== state.view;
  for (const node of document.querySelectorAll('.placing, .of-grid')) node.hidden = state.view !== 'grid';
  if (!data.cells.some((cell) => cell.moving)) $('#play').hidden = true;
  for (const node of document.querySelectorAll('.filter')) node.update();
  const cells = shownCells();
  $('#all').hidden = cells.length === data.cells.length && !state.out.some((set) => set.size);
  $('.nothing').hidden = cells.length > 0;
  ({ grid: drawGrid, table: drawTable, plots: drawPlots })[state.view](cells);
}
