// Layers by heads as buttons; sliding and global layers in bands of their own. A click or Enter chooses one.

export default function (component) {
  draw(component);
}

async function draw({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".heads");
  root.wanted = data;
  const sprite = data.sprite && (await received(data.sprite.slot, data.sprite.digest));
  if (root.wanted !== data) return;
  root.send = setTriggerValue;
  // Buttons stay where they are when another is pressed: drawing a hundred small maps again takes longer than the rest.
  const grid = JSON.stringify([data.bands, data.sprite], (key, value) => (key === "pressed" ? undefined : value));
  if (grid !== root.grid) {
    const focused = root.contains(parentElement.activeElement ?? null) ? parentElement.activeElement.dataset.head : null;
    root.replaceChildren(...data.bands.map((band) => drawBand(band, data, sprite, root)));
    root.querySelector(`[data-head="${focused}"]`)?.focus();
    root.grid = grid;
  }
  const buttons = [...root.querySelectorAll("button")];
  const cells = data.bands.flatMap((band) => band.rows.flatMap((row) => row.cells));
  const first = Math.max(0, cells.findIndex((cell) => cell.pressed));
  buttons.forEach((button, at) => {
    button.setAttribute("aria-pressed", String(cells[at].pressed));
    button.tabIndex = at === first ? 0 : -1;
  });
  root.onkeydown = (event) => move(event, buttons);
  parentElement.querySelector(".save").onclick = () => save(data, sprite);
  root.dataset.shows = data.name;
}

function drawBand(band, data, sprite, root) {
  const section = element("section", band.kind);
  const heading = element("p", "band");
  heading.append(element("b", band.kind, `${band.kind} layers`), ` ${band.note}`);
  const grid = element("div", "grid");
  grid.style.gridTemplateColumns = `2.2em repeat(${band.rows[0].cells.length}, minmax(0, 60px))`;
  grid.append(element("span", "name", ""), ...band.rows[0].cells.map((_, head) => element("span", "name", head)));
  for (const row of band.rows) {
    grid.append(element("span", "name", row.layer));
    for (const cell of row.cells) {
      const button = element("button", "head", cell.text);
      button.type = "button";
      button.dataset.head = `${row.layer}.${cell.head}`;
      button.title = cell.title;
      button.setAttribute("aria-label", cell.title);
      button.onclick = () => root.send("head", [row.layer, cell.head]);
      if (cell.color) [button.style.backgroundColor, button.style.color] = [cell.color, cell.ink];
      if (sprite) {
        const [columns, rows] = data.sprite_heads;
        button.style.backgroundImage = `url(${sprite})`;
        button.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
        button.style.backgroundPosition = `${place(cell.head, columns)}% ${place(row.layer, rows)}%`;
      }
      grid.append(button);
    }
  }
  section.append(heading, grid);
  return section;
}

function move(event, buttons) {
  const at = buttons.indexOf(event.target);
  const [layer, head] = (event.target.dataset.head ?? "").split(".").map(Number);
  const down = buttons.filter((button) => button.dataset.head.endsWith(`.${head}`));
  const next = {
    ArrowRight: buttons[at + 1],
    ArrowLeft: buttons[at - 1],
    ArrowDown: down[down.indexOf(event.target) + 1],
    ArrowUp: down[down.indexOf(event.target) - 1],
  }[event.key];
  if (at < 0 || Number.isNaN(layer) || !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  next?.focus();
}

// The grid as a picture of its own: a row for each layer, in the order of the page.
function save(data, sprite) {
  const [size, left, top] = [48, 92, 22];
  const rows = data.bands.flatMap((band) => band.rows.map((row) => ({ ...row, kind: band.kind })));
  const width = left + size * data.sprite_heads[0];
  const picture = shape("svg", { viewBox: `0 0 ${width} ${top + size * rows.length}`, width });
  picture.setAttribute("font-family", "sans-serif");
  picture.setAttribute("font-size", 11);
  rows[0].cells.forEach((cell) => picture.append(words(cell.head, left + (cell.head + 0.5) * size, 14)));
  rows.forEach((row, at) => {
    const y = top + at * size;
    picture.append(words(`${row.layer} ${row.kind}`, left / 2, y + size / 2 + 4));
    for (const cell of row.cells) {
      const box = { x: left + cell.head * size + 1, y: y + 1, width: size - 2, height: size - 2 };
      picture.append(shape("rect", { ...box, fill: cell.color ?? "#eee", stroke: "#999" }));
      if (sprite) {
        const part = shape("svg", { ...box, viewBox: `${cell.head} ${row.layer} 1 1` });
        const [columns, layers] = data.sprite_heads;
        const all = { href: sprite, width: columns, height: layers, preserveAspectRatio: "none" };
        part.append(shape("image", { ...all, style: "image-rendering:pixelated" }));
        picture.append(part);
      }
      const ink = { fill: cell.ink ?? "black" };
      picture.append(words(cell.text, box.x + size / 2 - 1, y + size / 2 + 4, ink));
    }
  });
  const link = document.createElement("a");
  link.download = data.file;
  link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(picture)], { type: "image/svg+xml" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const SVG = "http://www.w3.org/2000/svg";
const place = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function words(text, x, y, more = {}) {
  const made = shape("text", { x, y, "text-anchor": "middle", ...more });
  made.textContent = text;
  return made;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
