// The viewer: one picture large, or two by a wipe, side by side, or as their difference. Videos play in step.

const MODES = { one: ['One', '1'], wipe: ['Wipe', 'W'], side: ['Side by side', 'S'], difference: ['Difference', 'D'] };
const viewer = { a: 0, b: null, mode: 'one', relation: { kind: 'reference' }, pin: null, cut: 50, gain: 4, zoom: 1, pan: [0, 0], heard: 0 };

function startViewer() {
  const buttons = Object.entries(MODES).map(([mode, [label, key]]) => {
    const button = element('button', { title: `${label} (${key})`, onclick: () => { setMode(mode); } }, label);
    button.dataset.mode = mode;
    return button;
  });
  $('.modes').append(...buttons);
  $('#against').onchange = (event) => {
    viewer.relation = JSON.parse(event.target.value);
    if (viewer.mode === 'one') viewer.mode = 'wipe';
    drawViewer();
  };
  $('#copy').onclick = copyCommand;
  $('.close').onclick = () => $('#viewer').close();
  $('#viewer').addEventListener('close', () => {
    $('.stage').replaceChildren();
    const node = document.querySelector(`section:not([hidden]) .shot[data-cell="${viewer.a}"]`);
    if (node) { node.scrollIntoView({ block: 'nearest', inline: 'nearest' }); node.focus({ preventScroll: true }); }
  });
  $('#viewer').addEventListener('keydown', viewerKey);
  $('.stage').addEventListener('wheel', (event) => {
    event.preventDefault();
    zoomTo(viewer.zoom * Math.exp(-event.deltaY / 400), event);
  }, { passive: false });
  $('.stage').addEventListener('pointerdown', dragStage);
  $('.stage').addEventListener('dblclick', (event) => zoomTo(viewer.zoom > 1 ? 1 : 4, event));
  addEventListener('resize', () => $('#viewer').open && arrange());
}

function view(i) {
  Object.assign(viewer, { a: i, zoom: 1, pan: [0, 0] });
  if (!$('#viewer').open) $('#viewer').showModal();
  drawViewer();
}

function setMode(mode) {
  viewer.mode = mode;
  drawViewer();
}

// What the shown one can be compared with: its reference, the pinned one, and all that differ from it in one axis.
function partners(a) {
  const found = [];
  const at = data.cells[a].at;
  const { reference } = data.cells[a];
  if (reference !== null && reference !== a) found.push({ cell: reference, relation: { kind: 'reference' }, label: `Reference (${difference(a, reference)})` });
  if (viewer.pin !== null && viewer.pin !== a) found.push({ cell: viewer.pin, relation: { kind: 'pin' }, label: `Pinned (${difference(a, viewer.pin)})` });
  const near = data.axes.map(() => []);
  data.cells.forEach((cell, i) => {
    const axes = cell.at.map((_, axis) => axis).filter((axis) => cell.at[axis] !== at[axis]);
    if (axes.length === 1 && near[axes[0]].length < 200) {
      near[axes[0]].push({ cell: i, relation: { kind: 'axis', axis: axes[0], place: cell.at[axes[0]] }, label: `${data.axes[axes[0]].label}: ${value(i, axes[0])}` });
    }
  });
  found.push(...near.flat());
  if (!found.length && data.cells.length > 1) {
    const cell = (a + 1) % data.cells.length;
    found.push({ cell, relation: { kind: 'next' }, label: `The next one (${difference(a, cell)})` });
  }
  return found;
}

function difference(a, b) {
  const axes = data.axes.map((_, axis) => axis).filter((axis) => data.cells[a].at[axis] !== data.cells[b].at[axis]);
  return axes.map((axis) => `${data.axes[axis].label}: ${value(b, axis)}`).join(' · ') || data.cells[b].name;
}

const sameRelation = (one, other) => one.kind === other.kind && one.axis === other.axis && one.place === other.place;

function drawViewer() {
  const found = partners(viewer.a);
  const kept = found.find((partner) => sameRelation(partner.relation, viewer.relation));
  const partner = kept || found[0] || null;
  viewer.b = partner ? partner.cell : null;
  const mode = viewer.b === null ? 'one' : viewer.mode;
  for (const button of document.querySelectorAll('.modes button')) {
    button.ariaPressed = String(button.dataset.mode === mode);
    button.disabled = viewer.b === null && button.dataset.mode !== 'one';
  }
  const option = (p) => element('option', { value: JSON.stringify(p.relation), selected: p === partner }, p.label);
  $('#against').replaceChildren(...found.map(option));
  $('.against').hidden = !found.length;
  drawStage(mode);
  drawFacts(mode);
}

function drawStage(mode) {
  const stage = $('.stage');
  const layers = (mode === 'one' ? [viewer.a] : [viewer.a, viewer.b]).map((i, place) => layer(i, place, mode));
  const pair = element('div', { className: `pair ${mode}` }, ...layers);
  const parts = [pair];
  if (mode === 'wipe') {
    pair.append(element('div', { className: 'divider' }));
    parts.push(slider('Wipe between the two', 0, 100, viewer.cut, (cut) => setCut(cut), 'cut'));
  }
  if (mode === 'difference') parts.push(slider('How much the difference is raised', 1, 16, viewer.gain, setGain, 'gain'));
  stage.replaceChildren(...parts);
  stage.dataset.mode = mode;
  setCut(viewer.cut);
  setGain(viewer.gain);
  const films = [...pair.querySelectorAll('video')];
  if (films.length) stage.append(player(films));
  arrange();
}

function layer(i, place, mode) {
  const node = large(i);
  node.classList.add('layer', place ? 'b' : 'a');
  node.addEventListener('full', arrange);
  const label = mode === 'one' ? '' : place || mode === 'difference' ? difference(viewer.a, viewer.b) : difference(viewer.b, viewer.a);
  const box = element('div', { className: `box ${place ? 'b' : 'a'}` }, node);
  if (label) box.append(element('span', { className: 'which', title: label }, label));
  return box;
}

function slider(label, min, max, now, change, name) {
  const node = element('input', { type: 'range', min, max, step: 'any', value: now, className: name, ariaLabel: label });
  node.oninput = () => change(+node.value);
  return node;
}

function setCut(cut) {
  viewer.cut = Math.max(0, Math.min(100, cut));
  $('.stage').style.setProperty('--cut', `${viewer.cut}%`);
  const node = $('.stage input.cut');
  if (node && +node.value !== viewer.cut) node.value = viewer.cut;
}

function setGain(gain) {
  viewer.gain = gain;
  $('.stage').style.setProperty('--gain', gain);
}

// Sizes: as large as the stage allows, with whole pixels seen as such where they are large enough.
function arrange() {
  const stage = $('.stage');
  const pair = stage.querySelector('.pair');
  if (!pair) return;
  const [width, height] = data.cells[viewer.a].size;
  const across = pair.classList.contains('side') ? 2 : 1;
  const reserved = stage.querySelector('.player') ? 130 : pair.matches('.wipe, .difference') ? 56 : 0;
  const room = [(stage.clientWidth - 32 - 12 * (across - 1)) / across, stage.clientHeight - 32 - reserved];
  const scale = Math.min(room[0] / width, room[1] / height) * viewer.zoom;
  pair.style.setProperty('--width', `${width * scale}px`);
  pair.style.setProperty('--height', `${height * scale}px`);
  pair.style.translate = `${viewer.pan[0]}px ${viewer.pan[1] - reserved / 2}px`;
  for (const node of pair.querySelectorAll('.layer')) {
    const about = data.cells[+node.dataset.cell].still;
    const own = node.dataset.full ? width : about ? about.size[0] : width;
    node.classList.toggle('pixels', (width * scale) / own >= 2);
  }
}

function zoomTo(zoom, event) {
  const next = Math.max(1, Math.min(40, zoom));
  const box = $('.stage').getBoundingClientRect();
  const at = event ? [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2] : [0, 0];
  viewer.pan = next === 1 ? [0, 0] : viewer.pan.map((pan, d) => at[d] - ((at[d] - pan) * next) / viewer.zoom);
  viewer.zoom = next;
  arrange();
}

function dragStage(event) {
  const stage = $('.stage');
  if (event.button || event.target.closest('input, button, .player')) return;
  const wiping = stage.dataset.mode === 'wipe' && (viewer.zoom === 1 || event.target.closest('.divider'));
  const before = [...viewer.pan];
  const move = (e) => {
    if (wiping) {
      const box = stage.querySelector('.box.a').getBoundingClientRect();
      setCut(((e.clientX - box.left) / box.width) * 100);
    } else if (viewer.zoom > 1) {
      viewer.pan = [before[0] + e.clientX - event.clientX, before[1] + e.clientY - event.clientY];
      arrange();
    }
  };
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  stage.addEventListener('pointermove', move);
  stage.addEventListener('pointerup', () => stage.removeEventListener('pointermove', move), { once: true });
  if (wiping) move(event);
}

// One set of controls for one video or two, the second of which follows the first; and the strip, a click in which seeks.
function player(films) {
  const [first, ...others] = films;
  const toggle = element('button', { className: 'icon', ariaLabel: 'Play or pause' }, '❚❚');
  const seek = element('input', { type: 'range', min: 0, max: 1, step: 'any', value: 0, ariaLabel: 'Time' });
  const clock = element('span', { className: 'clock' });
  toggle.onclick = () => (first.paused ? films.forEach((film) => film.play()) : films.forEach((film) => film.pause()));
  seek.oninput = () => films.forEach((film) => { film.currentTime = seek.value * (film.duration || 0); });
  const follow = () => {
    const length = first.duration || 0;
    if (document.activeElement !== seek || !first.paused) seek.value = length ? first.currentTime / length : 0;
    clock.textContent = `${first.currentTime.toFixed(2)} / ${length.toFixed(2)} s`;
  };
  const inStep = () => follows(first, others);
  for (const kind of ['timeupdate', 'seeked', 'loadedmetadata']) first.addEventListener(kind, follow);
  first.addEventListener('play', () => { toggle.textContent = '❚❚'; others.forEach((film) => film.play().catch(() => {})); inStep(); });
  first.addEventListener('pause', () => { toggle.textContent = '▶'; others.forEach((film) => film.pause()); inStep(); follow(); });
  const speakers = films.map((film, place) => {
    const button = element('button', { className: 'icon speaker', title: 'Sound (M)', ariaLabel: `Sound of ${caption(+film.dataset.cell)}` }, '♪');
    button.hidden = !data.cells[+film.dataset.cell].sound;
    button.onclick = () => { viewer.heard = viewer.heard === place ? -1 : place; hear(); };
    return button;
  });
  const hear = () => films.forEach((film, place) => {
    film.muted = place !== viewer.heard;
    speakers[place].ariaPressed = String(!film.muted);
  });
  hear();
  first.play().catch(() => { films.forEach((film) => { film.muted = true; }); first.play().catch(() => {}); }); // a browser may ask for a click first
  const strips = films.map((film) => {
    const strip = lazy(+film.dataset.cell);
    strip.classList.add('strip');
    strip.onclick = (event) => {
      const at = event.offsetX / strip.clientWidth;
      films.forEach((one) => { one.currentTime = at * (one.duration || 0); });
    };
    return strip;
  });
  const controls = element('div', { className: 'controls' }, toggle, ...speakers, seek, clock);
  return element('div', { className: 'player' }, element('div', { className: 'strips' }, ...strips), controls);
}

// Keeps films with the first: a little faster or slower is not seen; what is far off, or at rest, jumps.
function follows(first, others) {
  for (const film of others) {
    const behind = first.currentTime - film.currentTime;
    if (Math.abs(behind) > 0.4 || (first.paused && behind)) film.currentTime = Math.min(first.currentTime, film.duration || 0);
    film.playbackRate = Math.max(0.7, Math.min(1.3, 1 + 3 * behind));
  }
  if (first.isConnected && !first.paused) requestAnimationFrame(() => follows(first, others));
}

// Starts films at one moment, when all of them have something to show.
async function startTogether(films) {
  const ready = (film) => film.readyState >= 3 || film.error || new Promise((go) => {
    for (const kind of ['canplay', 'error']) film.addEventListener(kind, go, { once: true });
  });
  await Promise.all(films.map(ready));
  await Promise.all(films.map((film) => film.isConnected && film.play().catch(() => {})));
  if (films.length) follows(films[0], films.slice(1));
}

function drawFacts(mode) {
  const cells = mode === 'one' ? [viewer.a] : [viewer.a, viewer.b];
  const fields = [...data.axes.map((axis, a) => [axis.label, (i) => value(i, a)]),
    ...Object.keys(NUMBERS).map((key) => [BELOW[key], (i) => (data.cells[i].reference === i && key !== 'seconds' ? 'reference' : told(i, key))]),
    ['Size', (i) => data.cells[i].size.join(' × ')], ['Run', (i) => data.cells[i].run || '']];
  const lines = fields.map(([label, of]) => [label, cells.map(of)]).filter(([, values]) => values.some(Boolean));
  const rows = lines.map(([label, values]) => {
    const differs = values.length > 1 && values[0] !== values[1];
    return element('tr', { className: differs ? 'differs' : '' }, element('th', {}, label), ...values.map((text) => element('td', { title: text }, text)));
  });
  $('.facts').replaceChildren(element('table', {}, ...rows));
  const cell = data.cells[viewer.a];
  $('.command pre').textContent = cell.command;
  $('.command .note').textContent = cell.note ? `It does not make the same picture: ${cell.note}.` : '';
  const framed = window.top !== window; // there, no file lies beside the page
  const link = framed ? cell.name : element('a', { href: cell.link, target: '_blank', rel: 'noreferrer' }, cell.name);
  const about = cell.video ? cell.moving : cell.still;
  const smaller = about && !about.exact ? ` The page itself carries a copy of ${about.size.join(' × ')}.` : '';
  $('.origin').replaceChildren('File ', link, '.', smaller);
  $('#copy').textContent = 'Copy';
}

// The clipboard is closed to pages in a frame, such as a tracking page's; the older way is not.
async function copyCommand() {
  const text = data.cells[viewer.a].command;
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    const area = element('textarea', { value: text });
    $('#viewer').append(area);
    area.select();
    done = document.execCommand('copy');
    area.remove();
  }
  $('#copy').textContent = done ? 'Copied' : 'Select it, and copy';
}

// One further along an axis, or in order where there is none or nothing further.
function step(axis, way) {
  const shown = shownCells();
  const at = data.cells[viewer.a].at;
  if (axis < 0) return shown[shown.indexOf(viewer.a) + way];
  const others = shown.filter((i) => data.cells[i].at.every((place, a) => a === axis || place === at[a]));
  const ordered = others.sort((i, j) => data.cells[i].at[axis] - data.cells[j].at[axis] || i - j);
  return ordered[ordered.indexOf(viewer.a) + way];
}

function viewerKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('select, input')) return;
  const arrows = { ArrowLeft: [state.x, -1], ArrowRight: [state.x, 1], ArrowUp: [state.y, -1], ArrowDown: [state.y, 1] };
  const modes = { 1: 'one', w: 'wipe', s: 'side', d: 'difference' };
  const key = event.key.toLowerCase();
  if (arrows[event.key]) {
    const next = step(...arrows[event.key]);
    if (next !== undefined) Object.assign(viewer, { a: next });
    drawViewer();
  } else if (modes[key]) setMode(modes[key]);
  else if (key === 'a') nextPartner();
  else if (key === 'p') { viewer.pin = viewer.a; viewer.relation = { kind: 'pin' }; drawViewer(); }
  else if (key === 'c') copyCommand();
  else if (key === 'm' && $('.player')) nextHeard();
  else if (key === '+' || key === '=') zoomTo(viewer.zoom * 1.4);
  else if (key === '-') zoomTo(viewer.zoom / 1.4);
  else if (key === ' ' && $('.player') && event.target.tagName !== 'BUTTON') $('.player .icon').click();
  else return;
  event.preventDefault();
}

// The sound of the first, then of the second, then of none.
function nextHeard() {
  const speakers = [...document.querySelectorAll('.player .speaker')].filter((node) => !node.hidden);
  const now = speakers.findIndex((node) => node.ariaPressed === 'true');
  const next = speakers[now + 1] || speakers[now];
  if (next) next.click();
}

function nextPartner() {
  const found = partners(viewer.a);
  if (!found.length) return;
  const place = found.findIndex((partner) => partner.cell === viewer.b);
  viewer.relation = found[(place + 1) % found.length].relation;
  if (viewer.mode === 'one') viewer.mode = 'wipe';
  drawViewer();
}
