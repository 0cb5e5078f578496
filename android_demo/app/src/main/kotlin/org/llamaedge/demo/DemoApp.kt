package org.llamaedge.demo

import android.app.Activity
import android.app.Application
import android.content.ComponentCallbacks2
import android.os.Bundle
import java.util.Base64

/** Holds what outlives a screen, and lets the model's memory go when nobody looks. */
class DemoApp : Application(), Application.ActivityLifecycleCallbacks {
    lateinit var models: ModelHolder
        private set
    lateinit var conversation: Conversation
        private set
    private var visible = 0

    override fun onCreate() {
        super.onCreate()
        val key = PUBLIC_KEY_BASE64.ifEmpty { null }?.let { Base64.getDecoder().decode(it) }
        models = ModelHolder(key)
        conversation = Conversation(this)
        registerActivityLifecycleCallbacks(this)
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level == ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL || level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) {
            letGo()
        }
    }

    override fun onLowMemory() {
        super.onLowMemory()
        letGo()
    }

    private fun letGo() {
        conversation.cancel()
        models.unload()
    }

    override fun onActivityStarted(activity: Activity) {
        visible++
    }

    override fun onActivityStopped(activity: Activity) {
        visible--
        // Turning the phone stops a screen too, and starts it again at once.
        if (visible == 0 && !activity.isChangingConfigurations) letGo()
    }

    override fun onActivityCreated(activity: Activity, state: Bundle?) = Unit

    override fun onActivityResumed(activity: Activity) = Unit

    override fun onActivityPaused(activity: Activity) = Unit

    override fun onActivitySaveInstanceState(activity: Activity, state: Bundle) = Unit

    override fun onActivityDestroyed(activity: Activity) = Unit

    companion object {
        /** 32 bytes of the publisher's Ed25519 key. With one, only bundles that `llama-edge sign` signed with it are loaded. */
        const val PUBLIC_KEY_BASE64 = ""
    }
}

internal val Activity.demo: DemoApp get() = application as DemoApp
