// The table: a line a cell, sorted by any column.

const NUMBERS = { seconds: 'Seconds', psnr: 'PSNR dB', ssim: 'SSIM', flip: 'FLIP', sound_snr: 'Sound dB', weights_error: 'Weights off by' };

function drawTable(cells) {
  nearby.disconnect();
  const columns = [
    ...data.axes.map((axis, a) => ({ key: a, label: axis.label, of: (i) => data.cells[i].at[a], text: (i) => value(i, a) })),
    ...Object.keys(NUMBERS).filter((key) => data.cells.some((cell) => cell[key] !== null)).map((key) => ({
      key, label: NUMBERS[key], number: true, of: (i) => number(data.cells[i][key]),
      text: (i) => (data.cells[i].reference === i && key !== 'seconds' && key !== 'weights_error' ? 'reference' : told(i, key).replace(/ (s|dB)$/, '')),
    })),
    { key: 'name', label: 'File', of: (i) => data.cells[i].name, text: (i) => data.cells[i].name },
  ];
  const sorted = columns.find((column) => state.sort && column.key === state.sort.key);
  if (sorted) cells.sort((a, b) => state.sort.way * compare(sorted.of(a), sorted.of(b)));
  const heads = columns.map((column) => {
    const arrow = sorted === column ? (state.sort.way > 0 ? ' ↑' : ' ↓') : '';
    const sort = () => { state.sort = { key: column.key, way: arrow === ' ↑' ? -1 : 1 }; show(); };
    const head = element('th', { className: column.number ? 'number' : '' }, element('button', { onclick: sort }, column.label + arrow));
    if (arrow) head.ariaSort = state.sort.way > 0 ? 'ascending' : 'descending';
    return head;
  });
  const lines = cells.map((i) => {
    const picture = element('button', { className: 'shot', onclick: () => view(i) }, ...(data.cells[i].video ? film(i).slice(0, 1) : [lazy(i)]));
    picture.ariaLabel = `Enlarge ${caption(i)}`;
    const values = columns.map((column) => element('td', { className: column.number ? 'number' : '', title: column.text(i) }, column.text(i)));
    return element('tr', {}, element('td', {}, picture), ...values);
  });
  const head = element('thead', {}, element('tr', {}, element('th'), ...heads));
  $('#table').replaceChildren(element('table', {}, head, element('tbody', {}, ...lines)));
}

const number = (v) => (v === 'inf' ? Infinity : v);

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return a < b ? -1 : a > b ? 1 : 0;
}
