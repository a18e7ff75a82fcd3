// Shows a page of source or of the docs in the view's colours, and scrolls to the lines asked for.

import { loadTheme } from "./theme.js";

loadTheme();
const line = document.body.dataset.line;
if (line) document.getElementById(`L${line}`).scrollIntoView({ block: "center" });
