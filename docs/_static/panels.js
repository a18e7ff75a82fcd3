// The view's page in frames of this site: loads it, gives it the theme of the site, and fits its height.

/** The theme of the site's page: what the reader has chosen, or the system's. */
function siteTheme() {
  const chosen = document.body.dataset.theme;
  if (chosen === "light" || chosen === "dark") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Load the view into a frame, and resolve with the view when it is there. */
function loadView(frame) {
  frame.src = `${frame.dataset.src}&theme=${siteTheme()}`;
  return new Promise((resolve) => {
    frame.addEventListener("load", async () => {
      const inner = frame.contentWindow;
      new ResizeObserver(() => fit(frame)).observe(inner.document.body);
      while (!inner.view) await new Promise((next) => setTimeout(next, 20)); // its modules are loading
      inner.view.takeTheme(siteTheme());
      resolve(inner.view);
    });
  });
}

/** Make a frame as tall as what it shows, unless it is hidden. */
function fit(frame) {
  const height = frame.contentDocument?.body.scrollHeight ?? 0;
  if (frame.clientWidth > 0 && height > 0) frame.style.height = `${height}px`;
}

function themeChanged() {
  for (const frame of document.querySelectorAll("iframe[data-src]")) frame.contentWindow?.view?.takeTheme(siteTheme());
}

// Pages that are opened as files may load no modules.
if (location.protocol !== "file:") {
  document.body.classList.add("has-panels");
  for (const frame of document.querySelectorAll("figure.engine iframe")) loadView(frame);
  new MutationObserver(themeChanged).observe(document.body, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);
}
