"""What a pixel of a labelled picture shows: the face, what hides it, or what lies behind, like the mouth's inside."""

FACE, OCCLUSION, BACKGROUND = 0, 1, 2  # the classes of the published segmentation network, in its order
