"""What `sm4ll` does, one module per noun; `serve.cli` names the commands."""
