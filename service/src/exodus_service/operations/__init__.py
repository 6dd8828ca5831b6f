"""Operations on received calls: train, forward, single layers, and models as a whole."""
