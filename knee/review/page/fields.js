// Turn grids of evidence into maps x in [0, 1] and contours. Nothing here changes the page.

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// Weights of bilinear up-sampling from `from` to `to` samples, pixel centers aligned as in torch (align_corners=False).
function upsampling(from, to) {
  const left = new Int32Array(to), right = new Int32Array(to), part = new Float32Array(to);
  for (let i = 0; i < to; i++) {
    const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    left[i] = Math.floor(at);
    right[i] = Math.min(left[i] + 1, from - 1);
    part[i] = at - left[i];
  }
  return { left, right, part };
}

// One network's map: its grid up-sampled to size × size and scaled to [0, 1]; all zero if the grid is constant.
function attention(network, size) {
  const [rows, columns] = network.grid, grid = bytesOf(network.map);
  const down = upsampling(rows, size), across = upsampling(columns, size);
  const wide = new Float32Array(rows * size), x = new Float32Array(size * size);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < size; c++) {
      const a = grid[r * columns + across.left[c]], b = grid[r * columns + across.right[c]];
      wide[r * size + c] = a + (b - a) * across.part[c];
    }
  let low = Infinity, high = -Infinity;
  for (let r = 0, k = 0; r < size; r++) {
    const above = down.left[r] * size, below = down.right[r] * size, part = down.part[r];
    for (let c = 0; c < size; c++, k++) {
      const value = wide[above + c] + (wide[below + c] - wide[above + c]) * part;
      x[k] = value;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  const scale = high - low > 1e-3 ? 1 / (high - low) : 0;
  for (let k = 0; k < x.length; k++) x[k] = (x[k] - low) * scale;
  return x;
}

function difference(student, teacher) {
  return student.map((value, k) => value - teacher[k]);
}

// Writes a field as colors into RGBA bytes. Signed fields run from −1 to 1, others from 0 to 1. `cover` is the share of the
// opacity at each of 256 levels; the threshold has a soft edge of 0.04, which avoids visible steps.
function paint(field, colors, cover, signed, opacity, threshold, rgba) {
  const above = (level) => Math.min(1, Math.max(0, (level / 255 - threshold) / 0.04));
  const alpha = Uint8ClampedArray.from(cover, (share, level) => 255 * opacity * share * (threshold ? above(level) : 1));
  for (let k = 0, at = 0; k < field.length; k++, at += 4) {
    const value = field[k];
    const color = 3 * Math.round(signed ? (value + 1) * 127.5 : value * 255);
    rgba[at] = colors[color];
    rgba[at + 1] = colors[color + 1];
    rgba[at + 2] = colors[color + 2];
    rgba[at + 3] = alpha[Math.round(Math.abs(value) * 255)];
  }
}

// The lines where a field crosses `level` (marching squares), as a path in image pixels.
function contour(field, size, level) {
  const path = new Path2D();
  const at = (r, c) => field[r * size + c];
  const cut = (a, b) => (level - a) / (b - a);
  for (let r = 0; r + 1 < size; r++)
    for (let c = 0; c + 1 < size; c++) {
      const a = at(r, c), b = at(r, c + 1), d = at(r + 1, c + 1), e = at(r + 1, c);
      const kind = (a > level) | ((b > level) << 1) | ((d > level) << 2) | ((e > level) << 3);
      if (kind === 0 || kind === 15) continue;
      const x = c + 0.5, y = r + 0.5, points = [];
      if ((kind & 1) !== ((kind >> 1) & 1)) points.push([x + cut(a, b), y]);
      if (((kind >> 1) & 1) !== ((kind >> 2) & 1)) points.push([x + 1, y + cut(b, d)]);
      if (((kind >> 2) & 1) !== ((kind >> 3) & 1)) points.push([x + cut(e, d), y + 1]);
      if (((kind >> 3) & 1) !== (kind & 1)) points.push([x, y + cut(a, e)]);
      for (let k = 0; k + 1 < points.length; k += 2) {
        path.moveTo(...points[k]);
        path.lineTo(...points[k + 1]);
      }
    }
  return path;
}

// Outlines of a mask, each x, y, x, y …, as a path through pixel centers.
function outlinePath(outlines) {
  const path = new Path2D();
  for (const outline of outlines || []) {
    for (let k = 0; k < outline.length; k += 2)
      path[k ? "lineTo" : "moveTo"](outline[k] + 0.5, outline[k + 1] + 0.5);
    path.closePath();
  }
  return path;
}

// The teacher's probabilities for a knee from those of its slices: their mean, or the mean logits of the most severe quarter.
function pooled(slices, severest) {
  const shares = slices.map((slice) => slice.teacher.p), grades = shares[0].map((_, grade) => grade);
  if (!severest) return grades.map((grade) => shares.reduce((sum, p) => sum + p[grade], 0) / shares.length);
  const expected = (p) => p.reduce((sum, share, grade) => sum + share * grade, 0);
  const most = [...shares].sort((one, other) => expected(other) - expected(one)).slice(0, Math.ceil(shares.length / 4));
  const raised = grades.map((grade) => Math.exp(most.reduce((sum, p) => sum + Math.log(Math.max(p[grade], 1e-5)), 0) / most.length));
  return raised.map((value) => value / raised.reduce((sum, one) => sum + one, 0));
}

// The cases of the page: slices of one knee, which share a case, are one. Each record gets all `slices`, in order, and the
// teacher's grade of the knee (null for a single image).
function casesOf(records) {
  const stacks = new Map();
  for (const item of records) stacks.set(item.case, [...(stacks.get(item.case) || []), item]);
  return [...stacks.values()].map((found) => {
    const [lead] = found, slices = [...found].sort((one, other) => one.place - other.place);
    const p = slices.length > 1 ? pooled(slices, run.severest) : null;
    const knee = p && { p, grade: p.indexOf(Math.max(...p)) };
    for (const item of slices) Object.assign(item, { slices, knee });
    const doubts = slices.flatMap((item) => Object.entries(item.doubts));
    lead.doubts = {};
    for (const [name, value] of doubts) lead.doubts[name] = Math.max(value, lead.doubts[name] ?? 0);
    return lead;
  });
}
