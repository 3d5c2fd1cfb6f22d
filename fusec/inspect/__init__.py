"""For people: explain tables, reports, replay, dumps. Enters: what the passes made. Leaves: text and pages."""
