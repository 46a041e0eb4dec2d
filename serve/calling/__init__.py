"""The wire of the typed client, and its calls on assets, batches and webhooks."""
