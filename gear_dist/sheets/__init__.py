"""Contact sheets: many samples side by side, labelled, with the settings of each."""
