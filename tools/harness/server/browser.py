"""The real frontend in a headless browser: open a workflow, name its missing nodes, run it, take its picture."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .serve import Server

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

# What covers the canvas in a picture of it.
_BARE = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}

_SHOW_IMAGES = ["SaveImage", "PreviewImage", "LoadImage", "LoadImageMask"]
_SHOW_TEXT = ["CLIPTextEncode"]

# The frontend opens a graph of its own once it is there; before that, one that is opened would be replaced by it.
_READY = """() => window.app?.vueAppReady && (app.graph?.nodes ?? app.graph?._nodes ?? []).length > 0
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""

_MISSING = """() => {
    const missing = new Set()
    const visit = (graph) => {
        for (const node of graph.nodes ?? graph._nodes) {
            if (node.subgraph) visit(node.subgraph)
            else if (!(node.type in LiteGraph.registered_node_types)) missing.add(node.type)
        }
    }
    visit(app.graph)
    return [...missing].sort()
}"""

_RUN = """() => new Promise((resolve) => {
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, (event) => resolve({
            kind, node: event.detail?.node_type ?? '', message: event.detail?.exception_message ?? ''
        }), { once: true })
    app.queuePrompt(0).then((accepted) => {
        if (!accepted) resolve({ kind: 'refused', node: '', message: JSON.stringify(app.lastNodeErrors ?? {}) })
    })
})"""

_FROM_API = """async ([workflow, name, spacing, roomy, wordy]) => {
    await app.loadApiJson(workflow, name)
    for (const node of app.graph.nodes ?? app.graph._nodes) {
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
        const [width, height] = node.computeSize()
        const room = roomy.includes(node.type) ? [320, 340] : wordy.includes(node.type) ? [360, 130] : [270, 0]
        node.setSize([Math.max(width, room[0]), Math.max(height, room[1])])
    }
    app.graph.arrange(spacing)
    return app.graph.serialize()
}"""

_SHOWN = """async (id) => {
    const node = app.graph.getNodeById(id)
    const element = document.querySelector(`[data-node-id="${id}"]`)
    const images = element ? [...element.querySelectorAll('img')] : node.imgs ?? []
    return images.map((image) => [image.naturalWidth, image.naturalHeight, image.src.split(':')[0]])
}"""

_SHOWN_BY_NAME = """(name) => [...document.querySelectorAll('img')]
    .filter((image) => image.src && (new URL(image.src).searchParams.get('filename') ?? '').startsWith(name))
    .map((image) => [image.naturalWidth, image.naturalHeight, image.src.split(':')[0]])"""

_SET_INPUTS = """(workflow) => {
    for (const [id, { inputs }] of Object.entries(workflow))
        for (const widget of app.graph.getNodeById(Number(id)).widgets ?? [])
            if (widget.name in inputs && !Array.isArray(inputs[widget.name])) widget.value = inputs[widget.name]
}"""

_FIT = """async ([width, height, margin]) => {
    const boxes = (app.graph.nodes ?? app.graph._nodes).map((node) => [...node.boundingRect ?? node.getBounding()])
    const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]))
    const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
    const view = app.canvas.ds
    view.scale = Math.min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top), 1)
    view.offset = [
        (width / view.scale - (right - left)) / 2 - left, (height / view.scale - (bottom - top)) / 2 - top,
    ]
    app.canvas.setDirty(true, true)
    await new Promise((resolve) => setTimeout(resolve, 700))
}"""


_FOCUS = """(on) => {
    app.extensionManager.focusMode = on
    document.getElementById('gcfg-bare')?.remove()
    if (!on) return
    const style = document.createElement('style')
    style.id = 'gcfg-bare'
    style.textContent = '[aria-label="Show Menu"] { display: none }'
    document.head.append(style)
}"""


class BrowserMissing(RuntimeError):
    """No chromium on this machine."""


def find_chromium() -> str:
    """The path of a chromium or chrome."""
    for name in _NAMES:
        path = shutil.which(name)
        if path:
            return path
    raise BrowserMissing(f"no browser: install Debian's chromium (looked for {', '.join(_NAMES)})")


class Frontend:
    """The frontend of a server in one page. ``errors`` collects what the pack's own scripts did wrong."""

    def __init__(self, page, server: Server):
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("console", self._listen)

    def open(self, vue_nodes: bool = False) -> None:
        """Load the frontend, in the classic renderer or in the Vue one."""
        settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue_nodes}
        settings |= {"Comfy.Workflow.ShowMissingModelsWarning": False, **_BARE}
        self.server.request("/api/settings", settings)
        self.page.goto(self.server.url)
        self.page.wait_for_function(_READY, timeout=240_000)

    def load(self, workflow: dict) -> None:
        """Open a workflow in UI format."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow, true, true, null)", workflow)

    def from_api(self, workflow: dict, name: str = "workflow", spacing: int = 60) -> dict:
        """Open a workflow in API format, arrange its nodes, and return it in UI format with fixed seeds."""
        return self.page.evaluate(_FROM_API, [workflow, name, spacing, _SHOW_IMAGES, _SHOW_TEXT])

    def place(self, workflow: dict, name: str = "workflow") -> None:
        """Open a workflow in API format as if its nodes were placed by hand: what it does not say is the default."""
        self.page.evaluate("([workflow, name]) => app.loadApiJson(workflow, name)", [workflow, name])

    def shown(self, node: int) -> list[list]:
        """Width, height and scheme of the source of every picture that a node shows."""
        return self.page.evaluate(_SHOWN, node)

    def shown_by_name(self, name: str) -> list[list]:
        """The same of every picture in the page, an app's result among them, whose file's name begins so."""
        return self.page.evaluate(_SHOWN_BY_NAME, name)

    def read_results_again(self) -> None:
        """Make the frontend read its list of results, as it does at each message of the server.

        Its own answers can overtake each other and leave it with an older list: an app then shows nothing until the
        next message (frontend 1.49.6).
        """
        self.page.evaluate("() => app.api.dispatchCustomEvent('status', { exec_info: { queue_remaining: 0 } })")

    def graph(self) -> dict:
        """The open workflow in UI format."""
        return self.page.evaluate("() => app.graph.serialize()")

    def to_api(self) -> dict:
        """The open workflow in API format, as the frontend would queue it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def set_inputs(self, workflow: dict) -> None:
        """Give the open workflow's widgets the values of a workflow in API format with the same node numbers."""
        self.page.evaluate(_SET_INPUTS, workflow)

    def missing_nodes(self) -> list[str]:
        """The node types of the open workflow that the server does not have."""
        return self.page.evaluate(_MISSING)

    def run(self, timeout: float = 120) -> dict:
        """Press Run and wait: ``kind`` is execution_success, execution_error, execution_interrupted or refused."""
        self.page.set_default_timeout(timeout * 1000)
        return self.page.evaluate(_RUN)

    def screenshot(self, path: Path, margin: int = 40) -> Path:
        """A picture of the whole graph without the panels around it; the ending of ``path`` chooses PNG or JPEG."""
        size = self.page.viewport_size
        self.page.keyboard.press("Escape")
        self._focus(True)
        self.page.evaluate(_FIT, [size["width"], size["height"], margin])
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path), **({"quality": 85} if path.suffix == ".jpg" else {}))
        self._focus(False)
        return path

    def _focus(self, on: bool) -> None:
        """Hide or show the panels around the canvas, and the button that stays when they are hidden."""
        self.page.evaluate(_FOCUS, on)

    def _listen(self, message) -> None:
        if message.type == "error" and "/extensions/gcfg/" in (message.location or {}).get("url", ""):
            self.errors.append(message.text)


@contextmanager
def browse(server: Server, vue_nodes: bool = False, width: int = 1600, height: int = 900) -> Iterator[Frontend]:
    """The frontend of ``server``, open and ready, in a browser that ends with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=_FLAGS)
        try:
            frontend = Frontend(browser.new_page(viewport={"width": width, "height": height}), server)
            frontend.open(vue_nodes)
            yield frontend
        finally:
            browser.close()
