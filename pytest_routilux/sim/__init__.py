"""The explorer: crashes, orders and checks of a simulated job."""
