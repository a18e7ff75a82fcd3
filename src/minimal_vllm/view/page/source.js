// Scrolls a page of source to the lines it was asked for.

const line = document.body.dataset.line;
if (line) document.getElementById(`L${line}`).scrollIntoView({ block: "center" });
