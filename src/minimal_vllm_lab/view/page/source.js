// On pages of source and documents: apply the view's theme, and scroll to the highlighted lines.

import { loadTheme } from "./theme.js";

loadTheme();
const line = document.body.dataset.line;
if (line) document.getElementById(`L${line}`).scrollIntoView({ block: "center" });
