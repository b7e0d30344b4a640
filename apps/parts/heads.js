// Layers by heads as buttons; sliding and global layers in bands of their own. A click or Enter chooses one.

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".heads");
  const focused = root.contains(parentElement.activeElement ?? null) ? parentElement.activeElement.dataset.head : null;
  root.replaceChildren(...data.bands.map((band) => drawBand(band, data, setTriggerValue)));
  const buttons = [...root.querySelectorAll("button")];
  const first = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
  if (first) first.tabIndex = 0;
  if (focused) buttons.find((button) => button.dataset.head === focused)?.focus();
  root.onkeydown = (event) => move(event, buttons);
  root.dataset.shows = data.name;
}

function drawBand(band, data, send) {
  const section = element("section", band.kind);
  const heading = element("p", "band");
  heading.append(element("b", band.kind, `${band.kind} layers`), ` ${band.note}`);
  const grid = element("div", "grid");
  grid.style.gridTemplateColumns = `2.2em repeat(${band.rows[0].cells.length}, minmax(0, ${data.size}px))`;
  grid.append(element("span", "name", ""), ...band.rows[0].cells.map((_, head) => element("span", "name", head)));
  for (const row of band.rows) {
    grid.append(element("span", "name", row.layer));
    for (const cell of row.cells) {
      const button = element("button", "head", cell.text);
      button.type = "button";
      button.dataset.head = `${row.layer}.${cell.head}`;
      button.title = cell.title;
      button.setAttribute("aria-label", cell.title);
      button.setAttribute("aria-pressed", String(cell.pressed));
      button.tabIndex = -1;
      button.onclick = () => send("head", [row.layer, cell.head]);
      if (cell.color) [button.style.backgroundColor, button.style.color] = [cell.color, cell.ink];
      if (data.sprite) {
        const [columns, rows] = data.sprite_heads;
        button.style.backgroundImage = `url(${data.sprite})`;
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

const place = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
