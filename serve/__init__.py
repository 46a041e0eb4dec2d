"""The product: API, routing and imaging of sm4ll-serve.

The path of one request, file by file: `api/tryon.py` reads and validates it, `pipeline.py` runs it
(`imaging/decode.py`, then the segmenter, `imaging/region.py`, the expert, `imaging/paste.py`,
`imaging/encode.py`), `api/tryon.py` answers. `router.py` hosts both; `app.py` wires the graph.
"""

__version__ = "0.1.0"
