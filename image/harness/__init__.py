"""What image/boot and image/test share: a card, the firmware's part, a machine, a small network."""
