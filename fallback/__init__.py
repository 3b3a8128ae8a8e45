"""The polling API: the events of the same log, as JSON pages, with the same cursor."""
