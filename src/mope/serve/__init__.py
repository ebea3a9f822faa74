"""A run behind HTTP: a JSON API and a page, with the limits that a server needs."""
