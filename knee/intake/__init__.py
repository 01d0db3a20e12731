"""From other people's folders and spreadsheets to a manifest."""
