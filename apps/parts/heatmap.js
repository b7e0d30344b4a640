// A map of attention weights on a canvas: hover or arrow keys name a weight, a drag or Shift + arrows frame a rectangle.
// VIRIDIS, its colours, and EDGE come from heatmap.py. Untrusted text is drawn or set as text, never as markup.

const CODES = 65535; // of weight 1
const CHOSEN = "#ff4fa3";

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".heatmap");
  root.map ??= new HeatMap(root);
  root.map.show(data, setTriggerValue);
}

class HeatMap {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    this.cursor = this.anchor = null;
    new ResizeObserver(() => this.data && this.draw()).observe(root);
  }

  listen() {
    const canvas = this.canvas;
    canvas.onpointermove = (event) => this.moved(event);
    canvas.onpointerdown = (event) => {
      this.anchor = this.at(event, true);
      this.cursor = this.anchor;
      this.dragged = false;
      this.down = [event.offsetX, event.offsetY];
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointerup = () => this.chosen();
    canvas.onpointercancel = canvas.onpointerleave = () => this.leave();
    canvas.onblur = () => this.leave();
    canvas.onkeydown = (event) => this.key(event);
    this.root.querySelector(".save").onclick = () => this.save();
  }

  async show(data, send) {
    this.send = send;
    const { slot, digest } = data.weights;
    const picture = `${digest} ${data.seen}`;
    this.wanted = data;
    if (picture !== this.painted) {
      const packed = await received(slot, digest);
      if (data !== this.wanted) return;
      this.cursor = this.anchor = null;
      this.weights = unpack(packed, data);
      this.picture = paint(this.weights, data);
      this.painted = picture;
    }
    this.data = data;
    this.listen();
    this.canvas.setAttribute("aria-label", data.label);
    this.draw();
    this.root.dataset.shows = data.name;
  }

  // ------------------------------------------------------------------------------------- what is where

  weight(row, column) {
    const [first, end] = this.data.seen[row];
    if (column < first || column >= end) return null;
    return (this.weights[row * this.data.columns.count + column] / CODES) ** 2;
  }

  at(event, clamped = false) {
    const { rows, columns } = this.data;
    const { left, top, width, height } = this.plot;
    let column = Math.floor(((event.offsetX - left) / width) * columns.count);
    let row = Math.floor(((event.offsetY - top) / height) * rows.count);
    if (clamped) [row, column] = [clamp(row, rows.count), clamp(column, columns.count)];
    return row < 0 || column < 0 || row >= rows.count || column >= columns.count ? null : { row, column };
  }

  moved(event) {
    if (event.buttons && this.anchor) {
      const [x, y] = this.down;
      this.dragged ||= Math.hypot(event.offsetX - x, event.offsetY - y) > 4;
      this.cursor = this.at(event, true);
    } else {
      this.anchor = null;
      this.cursor = this.at(event);
    }
    this.draw();
    this.name();
  }

  leave() {
    this.cursor = this.anchor = null;
    this.tip.hidden = true;
    this.draw();
  }

  chosen() {
    const { rows, columns, distance } = this.data;
    if (!this.cursor) return;
    const [row, column] = [tokens(rows, this.cursor.row), tokens(columns, this.cursor.column)];
    if (this.dragged && this.anchor && this.data.selectable) {
      const [r0, r1] = [this.anchor.row, this.cursor.row].sort((a, b) => a - b);
      const [c0, c1] = [this.anchor.column, this.cursor.column].sort((a, b) => a - b);
      const rectangle = [tokens(rows, r0)[0], tokens(rows, r1)[1], tokens(columns, c0)[0], tokens(columns, c1)[1]];
      this.send("rectangle", rectangle);
    } else {
      this.send("pick", [row[0], distance ? row[0] - column[0] : column[0]]);
    }
    this.anchor = null;
    this.dragged = false;
  }

  key(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Enter" && this.cursor) {
      event.preventDefault();
      this.chosen();
    } else if (event.key === "Escape") {
      this.leave();
    } else if (step) {
      event.preventDefault();
      const { rows, columns } = this.data;
      // The first arrow shows the cursor, in the corner.
      const from = this.cursor ?? { row: 0, column: 0 };
      const far = !this.cursor && !event.shiftKey ? 0 : event.ctrlKey ? 10 : 1;
      this.dragged = event.shiftKey;
      this.anchor = event.shiftKey ? (this.anchor ?? from) : null;
      this.cursor = {
        row: clamp(from.row + far * step[0], rows.count),
        column: clamp(from.column + far * step[1], columns.count),
      };
      this.draw();
      this.name();
    }
  }

  name() {
    const { tip, cursor, data } = this;
    tip.hidden = !cursor;
    if (!cursor) return;
    const { rows, columns, distance, what } = data;
    const weight = this.weight(cursor.row, cursor.column);
    const row = tokens(rows, cursor.row);
    const column = tokens(columns, cursor.column);
    const single = rows.cell === 1 && columns.cell === 1;
    const apart = distance ? column[0] : row[0] - column[0];
    const lines = [`Query ${span(row)} ${rows.texts[cursor.row] ?? ""}`];
    if (distance && single) lines.push(`Key ${row[0] - column[0]}`);
    if (!distance) lines.push(`Key ${span(column)} ${columns.texts[cursor.column] ?? ""}`);
    lines.push(`Distance ${distance ? span(column) : (single ? "" : "about ") + apart}`);
    lines.push(weight === null ? this.unseen(row, column) : `${what} ${weight < 0.001 ? weight.toExponential(3) : weight.toFixed(5)}`);
    tip.textContent = lines.join("\n");
    const { left, top, width, height } = this.plot;
    const x = left + ((cursor.column + 0.5) / columns.count) * width;
    const y = top + ((cursor.row + 0.5) / rows.count) * height;
    const room = this.canvas.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${clamp(x + 14 > room ? x - tip.offsetWidth - 14 : x + 14, room + 1)}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight - 8)}px`;
  }

  // Why a square holds no weight.
  unseen(row, column) {
    if (this.data.distance) return "before the first token";
    return column[0] >= row[1] ? "after the query: not seen" : "outside the window: not seen";
  }

  // ------------------------------------------------------------------------------------------ drawing

  draw() {
    const { rows, columns, height: most } = this.data;
    const canvas = this.canvas;
    const outside = this.root.clientWidth;
    if (!outside || !this.picture) return;
    const labelled = rows.count <= 48 && columns.count <= 48 && rows.cell === 1 && !this.data.distance;
    const [left, right, top, bottom] = [labelled ? 84 : 52, 10, 6, labelled ? 76 : 42];
    let width = outside - left - right;
    let height = Math.min(most, Math.max(60, (width * rows.count) / columns.count));
    if (!this.data.distance) width = Math.min(width, (height * columns.count) / rows.count);
    this.plot = { left, top, width, height };
    const scale = window.devicePixelRatio || 1;
    const size = [left + width + right, top + height + bottom];
    canvas.width = size[0] * scale;
    canvas.height = size[1] * scale;
    canvas.style.width = `${size[0]}px`;
    canvas.style.height = `${size[1]}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    this.paper(pen, size);
    pen.imageSmoothingEnabled = width * scale < columns.count || height * scale < rows.count;
    pen.drawImage(this.picture, left, top, width, height);
    this.window(pen);
    this.axes(pen, labelled);
    this.marks(pen);
    this.legend();
  }

  paper(pen, size) {
    const style = getComputedStyle(this.root);
    this.ink = style.getPropertyValue("--st-text-color") || "#333";
    pen.fillStyle = style.getPropertyValue("--st-background-color") || "#fff";
    pen.fillRect(0, 0, ...size);
    pen.fillStyle = "rgba(128, 128, 128, 0.10)";
    pen.fillRect(this.plot.left, this.plot.top, this.plot.width, this.plot.height);
  }

  x(key) {
    const { first, cell, count } = this.data.columns;
    return this.plot.left + (Math.min(Math.max((key - first) / cell, 0), count) / count) * this.plot.width;
  }

  y(query) {
    const { first, cell, count } = this.data.rows;
    return this.plot.top + (Math.min(Math.max((query - first) / cell, 0), count) / count) * this.plot.height;
  }

  window(pen) {
    const { rows, window: seen, distance } = this.data;
    if (!seen || distance) return;
    pen.fillStyle = "rgba(128, 128, 128, 0.22)";
    pen.strokeStyle = EDGE;
    pen.lineWidth = 2;
    pen.beginPath();
    let begun = false;
    for (let row = 0; row < rows.count; row++) {
      const [query, end] = tokens(rows, row);
      const edge = query - seen + 1;
      if (edge <= this.data.columns.first) continue;
      const [x, y0, y1] = [this.x(edge), this.y(query), this.y(end)];
      pen.fillRect(this.plot.left, y0, x - this.plot.left, y1 - y0);
      if (begun) pen.lineTo(x, y0);
      else pen.moveTo(x, y0);
      begun = true;
      pen.lineTo(x, y1);
    }
    pen.stroke();
  }

  marks(pen) {
    const { rectangle, query } = this.data;
    const { left, width } = this.plot;
    pen.strokeStyle = CHOSEN;
    pen.lineWidth = 1.5;
    if (query !== null) pen.strokeRect(left, this.y(query), width, Math.max(1, this.y(query + 1) - this.y(query)));
    if (rectangle) {
      const [q0, q1, k0, k1] = rectangle;
      pen.lineWidth = 2.5;
      pen.strokeRect(this.x(k0), this.y(q0), this.x(k1) - this.x(k0), this.y(q1) - this.y(q0));
    }
    if (!this.cursor) return;
    const { rows, columns, distance } = this.data;
    const from = this.dragged && this.anchor ? this.anchor : this.cursor;
    const [r0, r1] = [from.row, this.cursor.row].sort((a, b) => a - b);
    const [c0, c1] = [from.column, this.cursor.column].sort((a, b) => a - b);
    const [x, y] = [this.x(tokens(columns, c0)[0]), this.y(tokens(rows, r0)[0])];
    pen.setLineDash(this.dragged ? [5, 4] : []);
    pen.lineWidth = 1.5;
    pen.strokeStyle = this.ink;
    pen.strokeRect(x, y, this.x(tokens(columns, c1)[1]) - x, this.y(tokens(rows, r1)[1]) - y);
    pen.setLineDash([]);
  }

  axes(pen, labelled) {
    const { rows, columns } = this.data;
    const { left, top, width, height } = this.plot;
    pen.fillStyle = this.ink;
    pen.font = `${labelled ? 11 : 12}px sans-serif`;
    pen.textBaseline = "middle";
    for (const [axis, across] of [[rows, false], [columns, true]]) {
      const length = across ? width : height;
      const every = labelled ? Math.ceil((axis.count * 12) / length) : nice((axis.count * axis.cell * (across ? 56 : 28)) / length);
      const last = axis.first + axis.count * axis.cell;
      for (let token = labelled ? axis.first : Math.ceil(axis.first / every) * every; token < last; token += every) {
        const text = labelled ? short(axis.texts[token - axis.first]) : String(token);
        const at = labelled ? token + 0.5 : token;
        pen.save();
        if (across) {
          pen.translate(this.x(at), top + height + 6);
          if (labelled) pen.rotate(-Math.PI / 2);
          pen.textAlign = labelled ? "right" : "center";
          pen.fillText(text, 0, labelled ? 0 : 6);
        } else {
          pen.textAlign = "right";
          pen.fillText(text, left - 6, this.y(at) + (labelled ? 0 : 5));
        }
        pen.restore();
      }
    }
    pen.globalAlpha = 0.75;
    pen.font = "12px sans-serif";
    if (!labelled) {
      pen.textAlign = "center";
      pen.fillText(columns.title, left + width / 2, top + height + 32);
      pen.translate(9, top + height / 2);
      pen.rotate(-Math.PI / 2);
      pen.fillText(rows.title, 0, 0);
      pen.setTransform(window.devicePixelRatio || 1, 0, 0, window.devicePixelRatio || 1, 0, 0);
    }
    pen.globalAlpha = 1;
  }

  legend() {
    const { top, what } = this.data;
    const stops = VIRIDIS.map((color) => `rgb(${color})`).join(", ");
    this.root.querySelector(".bar").style.background = `linear-gradient(to right, ${stops})`;
    this.root.querySelector(".what").textContent = `${what} 0`;
    this.root.querySelector(".top").textContent = `${Number(top.toPrecision(2))} (square-root scale)`;
  }

  save() {
    const link = document.createElement("a");
    link.download = `${this.data.name}.png`;
    link.href = this.canvas.toDataURL("image/png");
    link.click();
  }
}

function unpack(text, { rows, columns, seen }) {
  const raw = atob(text);
  const weights = new Uint16Array(rows.count * columns.count);
  let at = 0;
  seen.forEach(([first, end], row) => {
    for (let square = row * columns.count + first; square < row * columns.count + end; square++, at += 2) {
      weights[square] = raw.charCodeAt(at) | (raw.charCodeAt(at + 1) << 8);
    }
  });
  return weights;
}

function paint(weights, { rows, columns, top, seen }) {
  const picture = document.createElement("canvas");
  [picture.width, picture.height] = [columns.count, rows.count];
  const pen = picture.getContext("2d");
  const pixels = pen.createImageData(columns.count, rows.count);
  const most = Math.sqrt(top) * CODES;
  seen.forEach(([first, end], row) => {
    for (let at = row * columns.count + first; at < row * columns.count + end; at++) {
      const shade = Math.min(weights[at] / most, 1) * (VIRIDIS.length - 1);
      const low = Math.min(Math.floor(shade), VIRIDIS.length - 2);
      for (let c = 0; c < 3; c++) {
        pixels.data[4 * at + c] = VIRIDIS[low][c] + (shade - low) * (VIRIDIS[low + 1][c] - VIRIDIS[low][c]);
      }
      pixels.data[4 * at + 3] = 255;
    }
  });
  pen.putImageData(pixels, 0, 0);
  return picture;
}

const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
const tokens = (axis, cell) => {
  const first = axis.first + cell * axis.cell;
  return [first, Math.min(first + axis.cell, axis.end)];
};
const span = ([first, end]) => (end - first <= 1 ? `${first}` : `${first} to ${end - 1}`);
const short = (text) => (text.length <= 12 ? text : text.slice(0, 11) + "…");
const nice = (least) => {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= least) ?? 10 * power;
};
