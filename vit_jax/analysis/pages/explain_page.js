'use strict';

function bytes(element) {
  return Uint8Array.from(atob(element.textContent), (char) => char.charCodeAt(0));
}

const ramp = bytes(document.getElementById('ramp'));

// Values in [0, 1] of the grid's patches, row by row, onto a canvas with a pixel for each patch.
function paint(canvas, values, [rows, columns], opaque) {
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  for (let i = 0; i < values.length; i++) {
    const level = 4 * Math.round(255 * values[i]);
    image.data.set(ramp.subarray(level, level + 4), 4 * i);
    if (opaque) image.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

function explore(root) {
  const find = (name) => root.querySelector(name);
  const stage = find('.stage'), here = find('.here'), slider = find('.layer');
  const {layers, heads, prefix, cells, factor, grid} = JSON.parse(stage.dataset.info);
  const levels = bytes(find('.levels'));
  const largest = new Float32Array(bytes(find('.largest')).buffer);
  const tokens = prefix + cells[0] * cells[1];
  const middle = prefix + (cells[0] >> 1) * cells[1] + (cells[1] >> 1);
  const state = {layer: layers.length - 1, head: -1, token: prefix ? 0 : middle, kept: false};

  // What the token attends to, (tokens,); head -1 is the mean of all heads.
  function weights(head) {
    const sum = new Float32Array(tokens);
    const first = head < 0 ? 0 : head, last = head < 0 ? heads - 1 : head;
    for (let k = first; k <= last; k++) {
      const row = (state.layer * heads + k) * tokens + state.token;
      const unit = largest[row] / 255 / (last - first + 1);
      for (let i = 0; i < tokens; i++) sum[i] += unit * levels[row * tokens + i];
    }
    return sum;
  }

  function patches(row) {
    const most = Math.max(...row.subarray(prefix), 1e-12), values = [];
    for (let i = 0; i < grid[0] * grid[1]; i++) {
      const y = Math.floor(Math.floor(i / grid[1]) / factor);
      const x = Math.floor((i % grid[1]) / factor);
      values.push(Math.sqrt(row[prefix + y * cells[1] + x] / most));  // few are much larger
    }
    return values;
  }

  function place(token) {
    const cell = token - prefix;
    return [Math.floor(cell / cells[1]), cell % cells[1]];
  }

  function name(token) {
    if (token < prefix) return 'the class token';
    const [y, x] = place(token);
    return `row ${y + 1}, column ${x + 1}`;
  }

  function showPlace() {
    here.hidden = state.token < prefix;
    const [y, x] = place(state.token);
    const box = {left: [x, grid[1]], top: [y, grid[0]], width: [1, grid[1]], height: [1, grid[0]]};
    for (const [side, [cell, count]] of Object.entries(box)) {
      here.style[side] = `${(100 * cell * factor) / count}%`;
    }
  }

  function draw() {
    const row = weights(state.head), ofPatches = row.subarray(prefix);
    paint(find('canvas.heat'), patches(row), grid, false);
    buttons.forEach(({canvas, button, head}) => {
      paint(canvas, patches(weights(head)), grid, true);
      button.setAttribute('aria-pressed', head === state.head);
    });
    showPlace();
    slider.value = state.layer;
    find('.number').textContent = layers[state.layer];
    const best = ofPatches.indexOf(Math.max(...ofPatches)) + prefix;
    const percent = (value) => `${(100 * value).toFixed(1)}%`;
    find('.said').textContent =
      `Block ${layers[state.layer]}, ${state.head < 0 ? 'mean of all heads' : `head ${state.head}`}: ` +
      `${name(state.token)} attends most to ${name(best)} (${percent(row[best])})` +
      (prefix ? `, and ${percent(row[0])} to the class token` : '') +
      (state.kept ? '. Kept: click the patch again to let go.' : '.');
  }

  function set(change) {
    Object.assign(state, change);
    draw();
  }

  const buttons = [...Array(heads + 1).keys()].map((i) => {
    const button = document.createElement('button'), canvas = document.createElement('canvas');
    const text = i ? `head ${i - 1}` : 'mean';
    canvas.style.aspectRatio = stage.style.aspectRatio;
    button.type = 'button';
    button.append(canvas, text);
    button.addEventListener('click', () => set({head: i - 1}));
    find('.heads').append(button);
    return {button, canvas, head: i - 1};
  });

  function pointed(event) {
    const box = stage.getBoundingClientRect();
    const cell = (at, start, size, side) =>
      Math.min(Math.max(Math.floor(((at - start) / size) * grid[side] / factor), 0), cells[side] - 1);
    const y = cell(event.clientY, box.top, box.height, 0);
    return prefix + y * cells[1] + cell(event.clientX, box.left, box.width, 1);
  }

  stage.addEventListener('pointermove', (event) => {
    if (event.pointerType === 'mouse' && !state.kept) set({token: pointed(event)});
  });
  stage.addEventListener('click', (event) => {
    const token = pointed(event);
    set({token, kept: event.pointerType !== 'touch' && !(state.kept && token === state.token)});
  });
  slider.addEventListener('input', () => set({layer: Number(slider.value)}));
  find('.class-token')?.addEventListener('click', () => set({token: 0, kept: true}));
  find('.smooth').addEventListener('click', (event) => {
    const smooth = !stage.classList.toggle('blocks');
    event.target.setAttribute('aria-pressed', smooth);
  });

  stage.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
    const pages = {PageUp: 1, PageDown: -1};
    const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
    if (event.key in moves) {
      const [y, x] = place(state.token < prefix ? middle : state.token);
      const [down, right] = state.token < prefix ? [0, 0] : moves[event.key];
      const token = prefix + within(y + down, cells[0]) * cells[1] + within(x + right, cells[1]);
      set({token, kept: true});
    } else if (event.key in pages) {
      set({layer: within(state.layer + pages[event.key], layers.length)});
    } else if (prefix && event.key.toLowerCase() === 'c') {
      set({token: 0, kept: true});
    } else {
      return;
    }
    event.preventDefault();
  });
  draw();
}

document.querySelectorAll('.explorer').forEach(explore);
