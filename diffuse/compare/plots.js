// Plots of what is shown: quality and time against steps, or against the first other number that varies. A line is a
// mean; each point is a cell, which a click enlarges.

const PANELS = { psnr: 'PSNR, dB', ssim: 'SSIM', flip: 'FLIP (0 is equal)', sound_snr: 'Sound SNR, dB', seconds: 'Seconds a picture' };
const SVG = 'http://www.w3.org/2000/svg';

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, v] of Object.entries(attributes)) node.setAttribute(name, v);
  node.append(...children);
  return node;
}

function drawPlots(cells) {
  const box = $('#plots');
  if (data.along < 0) {
    box.replaceChildren(element('p', { className: 'hint' }, 'No number varies that these could be drawn against.'));
    return;
  }
  const panels = Object.keys(PANELS).filter((key) => cells.some((i) => Number.isFinite(data.cells[i][key])));
  const nodes = panels.map((key) => panel(key, cells));
  if (!panels.length) nodes.push(element('p', { className: 'hint' }, 'Nothing that is shown has been measured.'));
  box.replaceChildren(legend(cells), element('div', { className: 'panels' }, ...nodes));
}

function seriesOf(cells) {
  return data.series < 0 ? [0] : [...new Set(cells.map((i) => data.cells[i].at[data.series]))].sort((a, b) => a - b);
}

function legend(cells) {
  if (data.series < 0) return '';
  const axis = data.axes[data.series];
  const entries = seriesOf(cells).map((place) => element('span', { className: `key s${place % 8}` }, axis.values[place]));
  return element('p', { className: 'legend' }, `${axis.label}: `, ...entries);
}

function ticks(low, high, most) {
  const rough = (high - low || Math.abs(high) || 1) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
  const found = [];
  for (let t = Math.ceil(low / size) * size; t <= high + size * 1e-9; t += size) found.push(+t.toPrecision(12));
  return found;
}

function panel(key, cells) {
  const points = cells.filter((i) => Number.isFinite(data.cells[i][key]))
    .map((i) => ({ i, x: +value(i, data.along), y: data.cells[i][key], line: data.series < 0 ? 0 : data.cells[i].at[data.series] }));
  const [width, height, left, bottom, top, right] = [480, 300, 58, 40, 14, 14];
  const span = (all) => { const [low, high] = [Math.min(...all), Math.max(...all)]; const room = (high - low || Math.abs(high) || 1) * 0.06; return [low - room, high + room]; };
  const [x0, x1] = span(points.map((p) => p.x));
  const [y0, y1] = span(points.map((p) => p.y).concat(key === 'seconds' ? [0] : []));
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - bottom - top);
  const plot = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${PANELS[key]} against ${data.axes[data.along].label}` });
  for (const t of ticks(y0, y1, 5)) {
    plot.append(svg('line', { class: 'rule', x1: left, x2: width - right, y1: py(t), y2: py(t) }),
      svg('text', { x: left - 8, y: py(t) + 4, 'text-anchor': 'end' }, `${t}`));
  }
  const marks = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
  for (const t of marks.length <= 8 ? marks : ticks(x0, x1, 7)) plot.append(svg('text', { x: px(t), y: height - bottom + 18, 'text-anchor': 'middle' }, `${t}`));
  plot.append(svg('text', { class: 'name', x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle' }, data.axes[data.along].label));
  for (const [line, own] of grouped(points, (p) => p.line)) {
    const means = [...grouped(own, (p) => p.x)].sort(([a], [b]) => a - b)
      .map(([x, at]) => [px(x), py(at.reduce((sum, p) => sum + p.y, 0) / at.length)]);
    plot.append(svg('polyline', { class: `curve s${line % 8}`, points: means.map((p) => p.join(',')).join(' ') }));
    for (const p of own) {
      const point = svg('circle', { class: `point s${line % 8}`, cx: px(p.x), cy: py(p.y), r: 3.5, tabindex: 0, role: 'button', 'aria-label': `${caption(p.i)}: ${told(p.i, key)}` });
      point.addEventListener('click', () => view(p.i));
      point.addEventListener('keydown', (event) => { if (event.key === 'Enter') view(p.i); });
      point.addEventListener('pointerenter', (event) => tip(p.i, key, event));
      point.addEventListener('pointerleave', () => { $('.tip').hidden = true; });
      plot.append(point);
    }
  }
  return element('figure', {}, element('figcaption', {}, PANELS[key]), plot);
}

function grouped(items, of) {
  const groups = new Map();
  for (const item of items) {
    if (!groups.has(of(item))) groups.set(of(item), []);
    groups.get(of(item)).push(item);
  }
  return groups;
}

function tip(i, key, event) {
  const url = data.cells[i].video ? '' : still(i);
  const node = $('.tip');
  node.replaceChildren(...(url ? [element('img', { src: url, alt: '' })] : []),
    element('div', {}, ...data.axes.map((axis, a) => element('div', {}, `${axis.label}: ${value(i, a)}`)), element('b', {}, told(i, key))));
  node.hidden = false;
  const { innerWidth: width, innerHeight: height } = window;
  node.style.left = `${Math.min(event.clientX + 16, width - node.offsetWidth - 8)}px`;
  node.style.top = `${Math.min(event.clientY + 16, height - node.offsetHeight - 8)}px`;
}
