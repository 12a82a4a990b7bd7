// The dashboard.
import "report:theme.css";
import "report:page.css";
import "uplot/dist/uPlot.min.css";
import "./dashboard.css";
import { render } from "preact";
import { App } from "./app";

const root = document.getElementById("app");
if (root) render(<App />, root);
