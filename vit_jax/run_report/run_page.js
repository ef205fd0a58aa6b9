'use strict';

// Reads values off a plot: at the pointer, or with the arrow keys.
function readOff(figure) {
  const {x: [low, high, left, right, width], names, points} = JSON.parse(figure.dataset.plot);
  const svg = figure.querySelector('svg'), here = figure.querySelector('.here');
  const said = figure.querySelector('output');
  const steps = [...new Set(points.flatMap((each) => each.filter((_, i) => i % 2 === 0)))];
  steps.sort((a, b) => a - b);
  let chosen = steps.length - 1;

  function nearest(values, step) {  // index into [step, value, step, …]
    let best = -2;
    for (let i = 0; i < values.length; i += 2) {
      if (best < 0 || Math.abs(values[i] - step) <= Math.abs(values[best] - step)) best = i;
    }
    return best;
  }

  function show() {
    const step = steps[chosen], x = left + (right - left) * (step - low) / (high - low);
    here.setAttribute('x1', x);
    here.setAttribute('x2', x);
    here.setAttribute('visibility', 'visible');
    const texts = points.map((values, i) => {
      const at = nearest(values, step);
      const value = at < 0 ? 'no value' : Number(values[at + 1].toPrecision(4));
      const other = at >= 0 && values[at] !== step ? ` (step ${values[at].toLocaleString('en')})` : '';
      return `${names[i] ? `${names[i]} ` : ''}${value}${other}`;
    });
    said.textContent = `step ${step.toLocaleString('en')}: ${texts.join(', ')}`;
  }

  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) * width / box.width;
    const step = low + (high - low) * (place - left) / (right - left);
    chosen = nearest(steps.flatMap((each) => [each, 0]), step) / 2;
    show();
  });
  figure.addEventListener('keydown', (event) => {
    const moves = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
    if (!(event.key in moves) || event.target !== figure) return;
    chosen = Math.min(Math.max(chosen + moves[event.key], 0), steps.length - 1);
    show();
    event.preventDefault();
  });
}

document.querySelectorAll('.plot').forEach(readOff);
