"""Image folders on the disk: opened, made (Color MNIST, photographs), and FFCV files of them."""
