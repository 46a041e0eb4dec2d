"""Grafana dashboards as code; generated/ holds the JSON that Grafana imports."""
