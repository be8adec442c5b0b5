"""`make bench`: every comparison, one after another."""

from benchmarks import attacks, export, quantizer, training

if __name__ == "__main__":
    quantizer.main()
    training.main()
    attacks.main()
    export.main()
