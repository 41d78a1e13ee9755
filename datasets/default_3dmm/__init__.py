"""The built-in morphable model of the face, its data files and the script that builds them (see CARD.md)."""
