from minerva.connect.child import Child
class Abutment(Child):
    def handle(self, message, descriptors):
        import logging; logging.info("abutment got %s %s", message, descriptors); return True
    def state(self): return {"neighbours": [], "channels": [], "counters": {}}
