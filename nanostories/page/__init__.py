"""The page that shows a story token by token, with what else was likely at each.

Its stories come from one of two scripts: server.js asks the server that sent the page
(nanostories/inference/server.py), model.js runs the model in the browser, in a file that needs
neither server nor network (nanostories/training/export_html.py).
"""

import json
import re
from pathlib import Path


def fill(engine, settings, head="", weights=""):
    """The page as text; {nonce} stands where the nonce of its scripts and its style goes.

    engine: "server.js" or "model.js". settings: what both scripts read, JSON-able. head, weights:
    HTML for the page's head, and for its end."""
    folder = Path(__file__).parent
    # The settings stand in a script element, where nothing but "<" could end the JSON.
    parts = {
        "engine": (folder / engine).read_text("utf-8"),
        "settings": json.dumps(settings).replace("<", "\\u003c"),
        "head": head,
        "weights": weights,
    }
    page = (folder / "page.html").read_text("utf-8")
    return re.sub(r"{(engine|settings|head|weights)}", lambda match: parts[match[1]], page)
