// The tooltip beside the pointer.

const tip = document.getElementById("tip");

/** Show a text beside the pointer; null hides the tooltip. */
export function showTip(text, event) {
  tip.hidden = text === null;
  if (text === null) return;
  tip.textContent = text;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${event.clientY + 16}px`;
}
