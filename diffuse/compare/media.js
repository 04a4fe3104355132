// Media: base64 text in the page becomes a picture when it comes near the screen, and is let go of when it has gone.

const KEPT = 300; // pictures that stay decoded after they left the screen
const addresses = new Map(); // element id -> object URL, the least recently used first

function address(id, mime) {
  let url = addresses.get(id);
  if (url) {
    addresses.delete(id);
  } else {
    const text = document.getElementById(id);
    if (!text) return '';
    const raw = atob(text.textContent);
    const bytes = Uint8Array.from(raw, (c) => c.charCodeAt(0));
    url = URL.createObjectURL(new Blob([bytes], { type: mime }));
  }
  addresses.set(id, url);
  return url;
}

function forget() {
  const used = new Set([...document.querySelectorAll('img[src^=blob], video[src^=blob]')].map((e) => e.src));
  for (const [id, url] of addresses) {
    if (addresses.size <= KEPT) break;
    if (used.has(url)) continue;
    URL.revokeObjectURL(url);
    addresses.delete(id);
  }
}

// The still of a cell: the picture itself, or the strip of a video's frames. Beyond what the page carries, the file.
function still(i) {
  const about = data.cells[i].still;
  return about ? address(`still-${i}`, about.mime) : data.cells[i].video ? '' : data.cells[i].link;
}

const nearby = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      const url = still(+target.dataset.cell);
      if (url && target.getAttribute('src') !== url) target.src = url;
    } else if (target.hasAttribute('src')) {
      target.removeAttribute('src');
    }
  }
  forget();
}, { rootMargin: '500px' });

// An image that loads when it scrolls into view.
function lazy(i) {
  const cell = data.cells[i];
  const image = element('img', { alt: caption(i), draggable: false, decoding: 'async' });
  image.dataset.cell = i;
  const [width, height] = cell.still ? cell.still.size : cell.size;
  image.width = width;
  image.height = height;
  if (!cell.video && Math.max(width, height) <= 128) image.classList.add('small');
  image.addEventListener('error', () => image.classList.add('gone'));
  nearby.observe(image);
  return image;
}

// For the viewer: the best there is. What is shown smaller here may lie beside the page in full; that is tried once.
let originals = window.top === window;

function large(i) {
  const cell = data.cells[i];
  const about = cell.video ? cell.moving : cell.still;
  const node = element(cell.video && about ? 'video' : 'img', { draggable: false });
  const own = cell.video ? (about ? address(`moving-${i}`, about.mime) : still(i)) : still(i);
  const better = about && !about.exact && originals && (!cell.video || /\.(mp4|webm)$/i.test(cell.link));
  if (node.tagName === 'VIDEO') Object.assign(node, { loop: true, muted: true, playsInline: true });
  node.alt = caption(i);
  node.dataset.cell = i;
  node.dataset.full = !about || about.exact ? 'true' : '';
  if (better && node.tagName === 'IMG') {
    const trial = new Image();
    trial.onload = () => { node.src = cell.link; node.dataset.full = 'true'; node.dispatchEvent(new Event('full')); };
    trial.onerror = () => { originals = false; };
    trial.src = cell.link;
  } else if (better) {
    node.addEventListener('error', () => { if (node.src !== own) { originals = false; node.src = own; } });
    node.src = cell.link;
    node.dataset.full = 'true';
    return node;
  }
  node.src = own;
  return node;
}
